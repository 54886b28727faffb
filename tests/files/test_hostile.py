"""Files that were made to hang, to fill the memory, or to give another number in silence."""

import io
import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import pytest
from command_line import command_line

from eval.predict import are_to
from eval.score import read_predictions
from eval.settings import Eval
from eval.table import Cell, Table
from experiments import history
from experiments.continued import check_named
from experiments.curves import first_and_last, missing_steps, read_log
from experiments.folders import check_whole
from experiments.verdict import verdict
from files.errors import UserError
from files.terminal import one_line, protect_terminal
from files.toml import parse_set, read_toml
from files.writing import held
from model.registry import POCKET
from train.settings import Settings, settings, to_toml


# ---------------------------------------------------------------- terminals, tables and folders
class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_shown_what_would_control_it(monkeypatch):
    said = "a\x1b[2J\x07\x9b1m\u202eb\r\u2066c\n\td\x00é"
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Screen())
    protect_terminal()
    protect_terminal()  # once is enough
    print(said)
    print(f"{said}\r\x1b[A|", file=sys.stderr)
    shown = r"a\x1b[2J\x07\x9b1m\u202eb\r\u2066c" + "\n\td\\x00é\n"
    assert sys.stdout.getvalue() == shown
    assert sys.stderr.getvalue() == shown[:-1].replace(r"\r", "\r") + "\r\x1b[A|\n"
    assert one_line("x\ny\u202e\x1b") == r"x\ny\u202e\x1b"
    assert 1900 < len(one_line("a" * 10**6 + "\x1b")) < 2020
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert one_line(said) == said.replace("\n", r"\n").replace("\r", r"\r")


def test_a_spreadsheet_computes_nothing():
    cells = ["=1+1", "+x", "-x", "@x", "\tx", "-1.5", "+2", "x=1", "", "\n=x"]
    line = Table(("a",), [[Cell(cell) for cell in cells]]).to_csv().partition("\n")[2]
    assert line == "'=1+1,'+x,'-x,'@x,'\tx,-1.5,+2,x=1,,\"'\n=x\"\n"


@pytest.mark.parametrize("where", ["log.jsonl", "adapter", "adapter/adapter_config.json"])
def test_a_run_does_not_write_through_a_link(tmp_path, where):
    folder = tmp_path / "run"
    (folder / where).parent.mkdir(parents=True)
    (folder / where).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{where} is a link"), held(folder):
        pass
    (folder / where).unlink()
    with held(folder):
        pass


def test_a_path_in_an_adapters_file_is_not_opened(tmp_path, monkeypatch):
    path = str(tmp_path / "secret.json")
    Path(path).write_text('[{"instruction": "a", "output": "b"}]')
    tests = {"mine": [{"instruction": "a", "input": "", "output": "", "answer": "1"}]}
    opened = []
    load = history.load_data
    monkeypatch.setattr(history, "load_data", lambda *a, **k: opened.append(a[0]) or load(*a, **k))
    _, notes = history.seen_in_training([{"data": path}], tests, "", [])
    assert not opened
    assert f"the training data '{path}' is named by the adapter's file only" in notes[0]
    history.seen_in_training([{"data": path}], tests, "", [path])
    assert opened == [path]
    _, notes = history.seen_in_training([{"data": "x" * 100_000}], tests, "", ["x" * 100_000])
    assert "is not here" in notes[0]


def test_a_run_does_not_open_what_only_an_adapters_file_names(tmp_path, capsys):
    """With --load and --continue; the run that is continued names its own data."""
    secret = tmp_path / "secret.json"
    rows = [
        {"instruction": f"What is {n} + 1?", "output": f"{n + 1}", "answer": n + 1}
        for n in range(20)
    ]
    secret.write_text(json.dumps(rows))
    shutil.copy(secret, tmp_path / "mine.json")
    words = "--template plain --set train.warmup_steps=0 --items 1 --set eval.before=false"
    words = [*words.split(), "--max-steps", "1", "--set", "eval.max_new_tokens=1"]
    data = [
        "--data",
        str(tmp_path / "mine.json"),
        *words,
        "--seed",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    first = ["--adapter", "lora", "--data", str(secret), *words, "--out", str(tmp_path / "run")]
    assert command_line.main(first) in (0, 1)
    alone = shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "alone")
    said = f"the training data '{secret}' is named by the adapter's file only"
    for start, opened in (
        (["--continue", str(alone)], False),
        (["--load", f"a={alone}", "--adapter", "lora"], False),
        (["--continue", str(tmp_path / "run")], True),
    ):
        capsys.readouterr()
        command_line.main([*start, *data])
        told = " ".join(capsys.readouterr())
        assert (said in told) != opened, told
        assert bool(re.search(r"was trained on (the test set|\d+ of these)", told)) == opened, told
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_a_base_is_not_opened_where_only_an_adapters_file_names_its_folder(tmp_path, monkeypatch):
    """--continue; by name it may come from the hub, and the run that the adapter is of is named."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(POCKET / "llama", tmp_path / "owner" / "name")
    for name in (str(POCKET / "llama"), "owner/name", "./owner/name"):
        with pytest.raises(UserError, match="which only its own file names, and is not opened"):
            check_named(tmp_path / "adapter", {"model": name})
    for name in ("pocket-llama", "llama-7b", "another/name"):
        check_named(tmp_path / "adapter", {"model": name})
    (tmp_path / "run.toml").write_text('model = "owner/name"')
    check_named(tmp_path / "adapter", {"model": "owner/name"})


# ---------------------------------------------------------------- settings
@pytest.mark.parametrize(
    "text", ["seed = " + "[" * 5000, "seed = " + "1" * 5000, "a" + ".a" * 5000 + " = 1", "\0"]
)
def test_settings_that_python_cannot_read(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(UserError) as error:
        settings(config=str(tmp_path / "run.toml"))
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError):
        settings(sets=[text.replace(" ", "")])


@pytest.mark.parametrize("key", ["model", "data", "template", "continue_from"])
def test_a_zero_byte_in_a_setting(key):
    with pytest.raises(UserError, match=f"{key} = .* should be a text"):
        settings(options={key: "a\0b"})


def test_a_cut_run_toml(tmp_path):
    path, whole = tmp_path / "run.toml", to_toml(Settings())
    path.write_text(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_whole(path)
    path.write_text("")
    with pytest.raises(UserError, match="has no model, data, seed, train, eval: it was cut short"):
        check_whole(path)
    path.write_text(whole[: whole.rindex("\nscoring") + 1])
    with pytest.warns(UserWarning, match=r"has no eval\.scoring, .*the defaults are taken"):
        check_whole(path)


# ---------------------------------------------------------------- logs and predictions
ENTRY = {"step": 1, "loss": 2.0, "learning_rate": 0.1, "skipped": False}


def test_a_damaged_log_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps(ENTRY | {"step": step, "loss": 3.0 - step}) for step in (1, 2)]
    junk = ["[]", "3", "{}", '{"step": "3"}', json.dumps(ENTRY | {"loss": "x"}), "[" * 10_000]
    path.write_bytes("\n".join([lines[0], *junk, lines[1]]).encode() + b"\n\xff\n\0\0\0")
    entries = read_log(path)
    assert [entry["step"] for entry in entries] == [1, 2]
    assert first_and_last(path, 2) == (2.0, 1.0)
    said = "log.jsonl has no entry of 2 of 4 steps"
    assert missing_steps(entries, 4) == said
    assert verdict(entries, 2, {}, {}, steps=4).notes == [f"{said}: its curves lack them"]
    with pytest.warns(UserWarning, match=f"{said}: its loss is left out"):
        assert first_and_last(path, 4) is None
    assert read_log(tmp_path / "none.jsonl") == []


def test_predictions_are_those_of_these_problems():
    rows = {"a": [{"instruction": f" {n} ", "answer": str(n)} for n in range(3)]}
    mine = [
        {"set": "a", "index": n, "instruction": str(n), "gold": str(n), "output": "x"}
        for n in range(3)
    ]
    assert are_to(mine, rows, Eval())
    assert not are_to(mine[:2], rows, Eval())
    assert not are_to([], rows, Eval())
    assert not are_to([*mine[:2], mine[2] | {"gold": "7"}], rows, Eval())
    drawn = Eval(temperature=1.0, seeds=[0, 1])
    assert not are_to(mine, rows, drawn)
    assert are_to([p | {"seed": seed} for p in mine for seed in (0, 1)], rows, drawn)


def test_a_seed_that_is_no_number(tmp_path):
    table = {"set": "a", "index": 0, "instruction": "", "output": "", "gold": "", "prompt": ""}
    table |= {"answer": "", "right": True, "paper_answer": "", "paper_right": True, "seed": [1]}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(table))
    with pytest.raises(UserError, match="seed should be a whole number"):
        read_predictions(tmp_path / "predictions.jsonl")
    lines = [json.dumps(table | {"seed": seed}) + "\n" for seed in (4, 5, 4)]
    (tmp_path / "predictions.jsonl").write_text("".join(lines))
    with pytest.raises(UserError, match="line 3: a second answer to "):
        read_predictions(tmp_path / "predictions.jsonl")
    (tmp_path / "predictions.jsonl").write_text("".join(lines[:2]))
    assert len(read_predictions(tmp_path / "predictions.jsonl")) == 2


@pytest.mark.parametrize(
    "text", ["[train]\nclip = 0x" + "7" * 4000, "tests = [[0b" + "1" * 70 + "]]", "#" * 2_000_001]
)
def test_toml_that_cannot_be_shown_or_ends_never_is_refused(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(UserError, match=r"run.toml cannot be read as TOML: .*(64 bits|2,000,000)"):
        read_toml(tmp_path / "run.toml")
    if len(text) < 10_000:
        with pytest.raises(UserError, match="integer has more than 64 bits"):
            parse_set(f"x={text.rpartition('= ')[2]}")


def test_an_error_has_one_line_of_bounded_length(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    said = one_line("first\nsecond\r" + "x" * 10**6 + "the end")
    assert said.startswith(r"first\nsecond\rxxx")
    assert said.endswith("xx" + "the end")
    assert len(said) < 2_100


def test_settings_that_torch_cannot_take_are_refused():
    for text, wrong in (("threads=4096", "up to 1,024"), ("eval.temperature=1e-9", "from 1e-06")):
        with pytest.raises(UserError, match=wrong):
            settings(sets=[text])
