"""The command line as a user meets it, in processes of its own: what it writes, and what it says
when something is wrong.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import processes
import pytest
from conftest import write_checkpoint
from test_interrupted import finish

import run as command_line

ROOT = Path(__file__).parent.parent
QUICK = ["--max-steps", "3", "--items", "4"]


def in_process(*arguments, cwd=None):
    """`python run.py` as a user starts it."""
    environment = os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *map(str, arguments)],
        cwd=cwd or ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def run(*arguments, cwd=None):
    """The same in this process, which has torch already."""
    out, error = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd or ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        status = command_line.main([str(one) for one in arguments])
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), error.getvalue())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """One complete short run in a folder of its own."""
    cwd = tmp_path_factory.mktemp("work")
    done = processes.finish(ROOT / "run.py", *QUICK, "--seed", "3", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "report:" in done.stdout
    return cwd / "runs" / "pocket-llama-parallel-wordproblems"


def test_a_run_leaves_everything_behind(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "run.toml",
        "log.jsonl",
        "adapter",
        "predictions-base.jsonl",
        "predictions.jsonl",
        "result.json",
        "report.html",
        "checkpoint-000003.pt",
        "leakage.json",
    }
    settings = tomllib.loads((finished / "run.toml").read_text())
    assert (settings["seed"], settings["train"]["max_steps"], settings["adapter"]["preset"]) == (
        3,
        3,
        "parallel",
    )
    assert [
        json.loads(line)["step"] for line in (finished / "log.jsonl").read_text().splitlines()
    ] == [1, 2, 3]
    result = json.loads((finished / "result.json").read_text())
    assert result["after"]["multiarith"]["total"] == result["before"]["multiarith"]["total"] == 4
    predictions = [
        json.loads(line) for line in (finished / "predictions.jsonl").read_text().splitlines()
    ]
    assert len(predictions) == 4 * 7
    page = (finished / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert "<b>[up]</b>" in page
    assert "<svg" in page


def test_run_toml_repeats_the_run(finished, tmp_path):
    again = run("--config", finished / "run.toml", "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    for name in ("predictions.jsonl", "predictions-base.jsonl"):
        assert (tmp_path / "again" / name).read_text() == (finished / name).read_text()
    losses = [
        [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (finished, tmp_path / "again")
    ]
    assert losses[0] == losses[1]


def test_evaluate_repeats_the_runs_own_numbers(finished, tmp_path):
    done = run("evaluate", finished, "--out", tmp_path / "e", "--batch-size", 3)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "e" / "predictions.jsonl").read_text() == (
        finished / "predictions.jsonl"
    ).read_text()
    assert f"adapter {finished / 'adapter'}, data wordproblems" in done.stdout
    assert "with adapter" in done.stdout
    base = run("evaluate", "--model", "pocket-llama", "--items", 4, "--out", tmp_path / "b")
    assert base.returncode == 0, base.stderr
    assert "no adapter, data wordproblems" in base.stdout
    assert "with adapter" not in base.stdout
    assert (tmp_path / "b" / "predictions.jsonl").read_text() == (
        finished / "predictions-base.jsonl"
    ).read_text()


def test_generate(finished, folder):
    told = run(
        "generate",
        finished,
        "--instruction",
        "Tom has 3 pens. Amy gives Tom 4 more. How many pens does Tom have now?",
    )
    assert told.returncode == 0, told.stderr
    assert "The answer is" in told.stdout
    first = run("generate", "--model", folder, "--prompt-ids", "5,6,7", "--max-new-tokens", "2")
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.strip().split(",")) == 2


def test_interrupted_with_ctrl_c_and_resumed(finished, tmp_path):
    """Ctrl-C after the first steps, then --resume: the same adapter as the undisturbed run, to
    the bit.
    """
    out = tmp_path / "out"
    whole = run(
        "--config", finished / "run.toml", "--out", tmp_path / "whole", "--set", "train.max_steps=6"
    )
    assert whole.returncode == 0, whole.stderr
    status, output, error = finish(
        "--config",
        finished / "run.toml",
        "--out",
        out,
        "--set",
        "train.max_steps=6",
        at=[("step", 2, 0, signal.SIGINT)],
    )
    assert status == 130, error
    assert f"--resume {out}" in output
    assert not (out / "adapter").exists()
    assert (
        f"not finished, it has no adapter yet: continue it with --resume {out}"
        in run("evaluate", out).stderr
    )
    done = run("--resume", out)
    assert done.returncode == 0, done.stderr
    name = "adapter/adapter_model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "is complete" in run("--resume", out).stderr


@pytest.fixture
def checked(capfd):
    """Call the command line in this process (importing torch anew takes seconds) and expect one
    line on stderr.
    """

    def check(*arguments, said: str, status: int = 1):
        assert command_line.main([str(argument) for argument in arguments]) == status
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert said in lines[0]
        return lines[0]

    return check


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


def test_another_adapter_over_a_saved_configuration_is_that_adapter(finished, tmp_path):
    from train.settings import settings

    made = settings(str(finished / "run.toml"), options={"adapter": {"preset": "series"}})
    assert made.adapter == settings(options={"adapter": {"preset": "series"}}).adapter
    assert made.adapter.only.options.reads == "output"
    assert (
        settings(str(finished / "run.toml"), sets=["adapter.size=9"]).adapter
        == settings(sets=["adapter.size=9"]).adapter
    )


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


def test_results_are_never_overwritten(checked, finished):
    assert "--resume" not in checked(
        "--out", finished, said="exists and is not empty: give another --out"
    )  # it is complete
    checked(
        "evaluate",
        "--adapter",
        finished,
        "--model",
        "pocket-llama",
        said=f"its adapter is {finished / 'adapter'}",
    )
    before = (finished / "result.json").read_text()
    done = run(*QUICK, "--seed", "4", "--set", "eval.before=false", cwd=finished.parent.parent)
    assert done.returncode == 0, done.stderr
    assert (finished.parent / f"{finished.name}-2" / "result.json").is_file()
    assert (finished / "result.json").read_text() == before


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


def test_a_mistake_in_a_process_of_its_own():
    done = in_process("--model", "pocket-lama")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback():
    done = processes.finish(ROOT / "run.py", "--adapter", "nothing", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "UserError: unknown adapter 'nothing'" in done.stderr


def test_help_names_every_command():
    done = in_process("--help")
    assert done.returncode == 0
    for word in ("evaluate", "generate", "pretrain", "--resume", "--set"):
        assert word in done.stdout


def test_pretrain_makes_a_model_that_trains(tmp_path):
    done = run("pretrain", "--max-steps", "2", "--out", tmp_path / "fresh")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "fresh").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    tuned = run(
        "--model", tmp_path / "fresh", "--recipe", "pocket-tune", *QUICK, "--out", tmp_path / "out"
    )
    assert tuned.returncode == 0, tuned.stderr


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


def test_data_without_training_rows_is_refused_before_the_model_is_loaded(
    tmp_path, monkeypatch, capsys
):
    def loaded(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("experiments.prepare.load_base", loaded)
    assert command_line.main(["--data", "none", "--out", str(tmp_path / "out")]) == 1
    assert "data none has no rows to train on" in capsys.readouterr().err
