"""What the command line says when something is wrong."""

import subprocess
import sys
from pathlib import Path

import processes
import pytest
from command_line import (
    ROOT,
    checked,  # noqa: F401
    in_process,
)
from conftest import write_checkpoint

import run as command_line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "pocket-lama"], "did you mean 'pocket-llama'"),
        (["--model", "llama-7b", "--data", "wordproblems"], "huggyllama/llama-7b"),
        (["--model", "lama-7b"], "did you mean 'llama-7b'"),
        (["--set", 'template="alpacca"'], "did you mean 'alpaca'"),
        (["--adapter", "paralel"], "did you mean 'parallel'"),
        (["--data", "wordproblem"], "did you mean 'wordproblems'"),
        (["--data", "math-v1"], "--data-dir"),
        (["--data", "math-v1", "--data-dir", "/nowhere"], "addsub_1.json is missing"),
        (["--config", "/nowhere.toml"], "does not exist"),
        (["--recipe", "pocket-tun"], "did you mean 'pocket-tune'"),
        (["--set", "train.learning_rat=1"], "did you mean 'learning_rate'"),
        (["--set", "adapter.sise=1"], "did you mean 'size'"),
        (["--set", "train.batch_size=0"], "batch_size = 0 should be a whole number from 1"),
        (["--set", "nothing"], "KEY=VALUE"),
        (["--dtype", "float8"], "float8"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", "meta"], "not one of"),
        (["--data-dir", "/nowhere"], "takes no --data-dir"),
        (["--seed", "99999999999999999999999"], "seed"),
        (["--set", "threads=-1"], "threads"),
        (["--set", "train.clip=inf"], "clip = inf should be a number above 0"),
        (["--set", "train.betas=[1.5, 0.9]"], "between 0 and 1"),
        (["--set", "adapter.layers=2"], "layers = 2"),
        (["--set", 'adapter.preset=["lora"]'], "lora"),
        (["--set", "train.cutoff=3"], "raise it"),
        (["--resume", "/nowhere"], "no run.toml"),
        (["--config", "/"], "is a folder"),
        (["--recipe", "pocket"], "from scratch"),
        (["--model", "/"], "config.json is missing"),
        (["evaluate", "/nowhere"], "/nowhere does not exist"),
        (["evaluate", "--adapter", "/nowhere"], "no adapter folder"),
        (["generate", "--prompt-ids", "5,x"], "5,6,7"),
        (["generate", "--prompt-ids", "5,99999"], "token ids 0 to"),
    ],
)
def test_mistakes_end_in_one_line(checked, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = [] if arguments[0] in ("generate", "--resume") else ["--out", str(tmp_path / "out")]
    checked(*arguments, *out, said=said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sed", "4"], "unknown option of train '--sed'; did you mean '--seed'"),
        (["--items", "1", "evaluate", "runs/x"], "the command comes first: python run.py evaluate"),
        (["evaluate", "--max-steps", "4"], "unknown option of evaluate '--max-steps'"),
        (["--max-steps", "x"], "--max-steps: 'x' is not a whole number; see: python run.py --help"),
        (["merge", "runs/x"], "required: --out; see: python run.py merge --help"),
        (["generate", "--prompt", "a", "--instruction", "b"], "not allowed with argument --prompt"),
        (["trian"], "did you mean 'train'"),
        (["help", "trian"], "did you mean 'train'"),
    ],
)
def test_a_usage_error_is_one_line_and_status_2(checked, arguments, said):
    checked(*arguments, said=said, status=2)


def test_recipes_are_read_whole(tmp_path, checked):
    from train.settings import settings

    path = tmp_path / "mine.toml"
    path.write_text('[adapter]\npreset = "lora"\nr = 4\n[adapters.series]\nsize = 6\n')
    assert settings(recipe_name=str(path)).adapter.only.options.r == 4
    made = settings(recipe_name=str(path), options={"adapter": {"preset": "series"}})
    assert made.adapter.only.options.size == 6
    for text, said in (
        ("[adapters.paralel]", "did you mean 'parallel'"),
        ("adapters = 3", "should hold tables"),
        ('adapter = "lora"', "should be a table"),
        ("[adapters]\nparallel = 3", "should hold tables"),
        ("[train]\nclipp = 1.0", "mine.toml [train]: unknown setting 'clipp'"),
    ):
        path.write_text(text)
        checked("--recipe", path, said=said)


def test_pretrain_refuses_what_it_cannot_use(tmp_path, checked):
    out = ["--out", tmp_path / "new"]
    checked("pretrain", "--max-steps", "-1", *out, said="at least 1")
    checked("pretrain", "--max-steps", "0", *out, said="at least 1")
    checked("pretrain", "--recipe", "pocket-tune", *out, said="is not one for pretrain")
    assert not (tmp_path / "new").exists()


def test_a_misspelled_key_in_a_toml_file_is_named_with_its_file(checked, tmp_path):
    (tmp_path / "my.toml").write_text("[train]\nlearnin_rate = 1e-3\n")
    checked(
        "--config",
        tmp_path / "my.toml",
        said="my.toml [train]: unknown setting 'learnin_rate'; did you mean 'learning_rate'",
    )
    (tmp_path / "my.toml").write_text("[train\n")
    checked("--config", tmp_path / "my.toml", said="cannot be read as TOML")


def test_a_tokenizer_larger_than_the_embedding(checked, tmp_path):
    folder = write_checkpoint(tmp_path / "tiny")
    (folder / "tokenizer.json").write_bytes(
        (ROOT / "model/pocket/llama/tokenizer.json").read_bytes()
    )
    checked(
        "evaluate",
        "--model",
        folder,
        "--data",
        "wordproblems",
        "--out",
        tmp_path / "out",
        said="the embedding only 61",
    )


@pytest.mark.parametrize(
    "start",
    [
        lambda *words: processes.finish(ROOT / "run.py", *words),
        pytest.param(in_process, marks=pytest.mark.slow),  # with all that Python imports
    ],
)
def test_a_mistake_in_a_process_of_its_own(start):
    done = start("--model", "pocket-lama")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_for_a_full_disk_is_one_line(words, monkeypatch, capsys):
    with open("/dev/full", "w", buffering=1) as full, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", full)
        assert command_line.main(words) == 1
    assert capsys.readouterr().err == (
        "run.py: the output cannot be written: No space left on device\n"
    )


def test_debug_shows_the_traceback():
    done = processes.finish(ROOT / "run.py", "--adapter", "nothing", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "UserError: unknown adapter 'nothing'" in done.stderr


@pytest.mark.parametrize("command", ["models", "train", "data"])
def test_a_missing_package_is_one_line(command):
    words = ["run.py", command] + (["list"] if command == "data" else [])
    code = (
        f"import runpy, sys; sys.modules['torch'] = None; sys.argv = {words!r}; "
        f"runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 1
    assert done.stderr == "run.py: the package torch is missing: pip install -r requirements.txt\n"


def test_a_name_that_is_not_utf8_and_a_folder_that_is_gone_are_one_line(
    checked, tmp_path, monkeypatch
):
    """As arguments come from a file system: bytes that are no text, as lone surrogates."""
    checked("data", "show", "a\udcff.json", said="is not valid UTF-8")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    checked("models", said="the current folder is gone")


def test_data_without_training_rows_is_refused_before_the_model_is_loaded(
    tmp_path, monkeypatch, capsys
):
    def loaded(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("experiments.prepare.load_base", loaded)
    assert command_line.main(["--data", "none", "--out", str(tmp_path / "out")]) == 1
    assert "data none has no rows to train on" in capsys.readouterr().err
