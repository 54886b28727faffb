"""Files that were made to hang, to fill the memory, or to give another number in silence."""

import io
import json
import pickle
import re
import shutil
import struct
import sys
import warnings
import zipfile
from copy import deepcopy
from pathlib import Path

import pytest
import torch

import run as command_line
from adapters import attach, load_adapter, save_adapter
from eval.predict import are_to
from eval.score import read_predictions
from eval.settings import Eval
from eval.table import Cell, Table
from experiments import history
from experiments.curves import first_and_last, missing_steps, read_log
from experiments.folders import check_whole
from experiments.verdict import verdict
from files import patterns
from files.errors import UserError
from files.pickles import check_pickle
from files.terminal import one_line, protect_terminal
from files.writing import held
from model import load_model
from model.weights import safetensors
from train.checkpoint import State, checkpoints, load_checkpoint
from train.optim import LossScale, adamw
from train.settings import Settings, Train, settings, to_toml

NAME = "model.layers.0.self_attn.q_proj"


# ---------------------------------------------------------------- patterns
@pytest.mark.parametrize("pattern", ["(a|a)*b", "((.*)*)*#", r"(\w+\.?)+!", "(.|.)*(.|.)*x{2}"])
def test_a_pattern_that_backtracks_for_ever(monkeypatch, pattern):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    text = "a" * 60 if pattern.startswith("(a") else f"{NAME}.{NAME}"
    with pytest.raises(UserError, match=r"the pattern .* takes longer than 0.2 s"):
        patterns.match(pattern, text)


def test_patterns_that_take_long_together(monkeypatch):
    monkeypatch.setattr(patterns, "spent", 6.0)
    with pytest.raises(UserError, match="take longer than 6 s"):
        patterns.match_in_child(["(a|a)*b", "", "", "a" * 10])


def test_patterns_fit_as_in_python():
    assert patterns.match("q_proj", f"{NAME}", r"(?:.*\.)?(?:", ")") == {}
    assert patterns.match(r".*\.(q|v)_proj", NAME) == {}
    assert patterns.match(r".*\.(?P<n>\d+)\..*", NAME) == {"n": "0"}
    assert patterns.match(r".*k_proj", NAME) is None
    with pytest.raises(UserError, match=r"'\(' is not a regular expression \(missing \)"):
        patterns.match("(", NAME)


def test_an_adapters_pattern_is_bounded(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    model = load_model("pocket-llama")
    with pytest.raises(UserError, match="takes longer than"):
        attach(model, "lora", overrides={"(([a-z_.0-9])+)+#": {"r": 4}})


# ---------------------------------------------------------------- pickles
def bomb(depth: int = 60) -> bytes:
    """A dictionary whose key is a tuple that unfolds to 2^depth elements."""
    return b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * depth + b"K\x01s."


def zipped(path: Path, content: bytes, **data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3\n")
        for key, value in data.items():
            file.writestr(f"archive/data/{key}", value)
    return path


def storage(count: int, kind: str = "FloatStorage") -> bytes:
    """A pickle of a tensor of so many elements in storage 0."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", getattr(torch, kind), "0", "cpu", count) if value is here else None

    from io import BytesIO

    here, out = Storage(), BytesIO()
    Pickler(out, protocol=2).dump({"a": here})
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (bomb(), "a key that is neither a text nor a number"),
        (b"\x80\x02" + b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "builtins bytearray"),
        (b"\x80\x02ctorch\nTensor\n\x8a\x05\x00\x00\x00\x00\x10\x85R.", "torch Tensor"),
        (
            b"\x80\x02ctorch.storage\nUntypedStorage\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
            "a call of",
        ),
        (b"\x80\x02ccollections\nCounter\n(\x85R.", "collections Counter"),
        (b"\x80\x02ccollections\nOrderedDict\n]q\x00(K\x01K\x02\x86e\x85R.", "of values"),
        (b"\x80\x02\x8f(K\x01\x90.", "the opcode EMPTY_SET"),
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "posix|os system"),
        (storage(10**12), "storage 0 of 1,000,000,000,000 elements, which are not in the file"),
        (storage(3), "storage 0 of 3 elements"),
        (storage(2, "QInt8Storage"), "torch QInt8Storage"),
    ],
)
def test_a_pickle_is_looked_at_before_torch_gets_it(tmp_path, content, said):
    for path in (zipped(tmp_path / "a.bin", content, **{"0": bytes(8)}), tmp_path / "old.bin"):
        if not path.exists():
            path.write_bytes(content)
        if path.name == "a.bin" or b"storage" not in content[:40]:
            with pytest.raises(UserError, match=f"{path} is refused, it holds more than.*({said})"):
                check_pickle(path)


def test_a_pickle_with_a_zip_behind_it_is_read_as_torch_reads_it(tmp_path):
    path = zipped(tmp_path / "a.bin", pickle.dumps({}, 2))
    path.write_bytes(bomb() + path.read_bytes())
    with pytest.raises(UserError, match="neither a text nor a number"):
        check_pickle(path)


def test_two_pickles_in_one_zip(tmp_path):
    path = zipped(tmp_path / "a.bin", pickle.dumps({}, 2))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("other/data.pkl", bomb())
    with pytest.raises(UserError, match="its zip holds other files than torch writes"):
        check_pickle(path)


# ---------------------------------------------------------------- shapes before memory
def sparse(path: Path, elements: int) -> Path:
    """A safetensors file with a hole of so many float32 elements."""
    table = {"a": {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}}
    header = json.dumps(table).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * elements)
    return path


def test_a_tensor_is_measured_before_there_is_memory_for_it(tmp_path, monkeypatch):
    path = sparse(tmp_path / "adapter_model.safetensors", 10**9)
    model = load_model("pocket-llama")
    monkeypatch.setattr(torch, "empty_like", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(UserError, match=r"tensor 'a' is \[1000000000\], which is larger than all"):
        list(safetensors(path, 10**8))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UserError, match="larger than all"):
        load_adapter(model, tmp_path)


@pytest.mark.parametrize("change", [{"r": 400_000}, {"r": 2**31}])
def test_an_adapter_asks_for_no_more_than_its_file_holds(tmp_path, change):
    model = load_model("pocket-llama")
    attach(model, "lora", r=2)
    save_adapter(model, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    table = json.loads(path.read_text())
    table["llm_adapters"]["adapter"] |= change
    path.write_text(json.dumps(table))
    model = load_model("pocket-llama")
    with pytest.raises(UserError, match="and its configuration asks for an adapter of"):
        load_adapter(model, tmp_path / "lora")


# ---------------------------------------------------------------- checkpoints
@pytest.fixture(scope="module")
def run_state(tmp_path_factory):
    """(a state at step 2 of 3, the folder of its checkpoint, its content)."""
    torch.manual_seed(0)
    model = load_model("pocket-llama")
    attach(model, "lora", r=2, sites=["q"], layers="first 1")
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    state = State(model, parameters, adamw(parameters, Train(), {}), LossScale())
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    state.step = 2
    state.validated(1.0)
    folder = tmp_path_factory.mktemp("run")
    state.save(folder, {"data": "a"})
    return state, folder, load_checkpoint(folder, {"data": "a"})


def first(saved: dict) -> str:
    return next(iter(saved["parameters"]))


CHANGES = {
    "no step": lambda s: s.pop("step"),
    "step of another type": lambda s: s.update(step="2"),
    "step of a list": lambda s: s.update(step=[2]),
    "step below 0": lambda s: s.update(step=-1),
    "step beyond the run": lambda s: s.update(step=4),
    "skipped": lambda s: s.update(skipped=None),
    "no parameters": lambda s: s.pop("parameters"),
    "a list of parameters": lambda s: s.update(parameters=[1]),
    "a parameter missing": lambda s: s["parameters"].pop(first(s)),
    "a parameter too many": lambda s: s["parameters"].update(x=torch.ones(1)),
    "a parameter of shape [1]": lambda s: s["parameters"].update({first(s): torch.ones(1)}),
    "a text for a parameter": lambda s: s["parameters"].update({first(s): "x"}),
    "NaN": lambda s: s["parameters"][first(s)].mul_(float("nan")),
    "no buffers": lambda s: s.pop("buffers"),
    "no scale": lambda s: s.pop("scale"),
    "scale 0": lambda s: s["scale"].update(scale=0.0),
    "scale NaN": lambda s: s["scale"].update(scale=float("nan")),
    "scale with more": lambda s: s["scale"].update(more=1),
    "no optimizer": lambda s: s.pop("optimizer"),
    "an empty optimizer": lambda s: s.update(optimizer={}),
    "no groups": lambda s: s["optimizer"].update(param_groups=[]),
    "maximize": lambda s: s["optimizer"]["param_groups"][0].update(maximize=True),
    "a group without betas": lambda s: s["optimizer"]["param_groups"][0].pop("betas"),
    "a moment of shape [1]": lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.ones(1)),
    "a negative moment": lambda s: s["optimizer"]["state"][0]["exp_avg_sq"].fill_(-1.0),
    "no moment": lambda s: s["optimizer"]["state"][0].pop("exp_avg"),
    "a step of the optimizer": lambda s: s["optimizer"]["state"][0].update(step="x"),
    "a parameter of the optimizer": lambda s: s["optimizer"]["state"].update({99: {}}),
    "best without weights": lambda s: s.update(best={"step": 1, "loss": 0.0}),
    "best of another type": lambda s: s.update(best=3),
    "best loss": lambda s: s["best"].update(loss=float("nan")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_that_does_not_fit_is_not_loaded(run_state, tmp_path, name):
    state, _, saved = run_state
    changed = deepcopy(saved)
    CHANGES[name](changed)
    torch.save(changed, tmp_path / "checkpoint-000002.pt")
    before = {key: p.detach().clone() for key, p in state.parameters.items()}
    with pytest.raises(UserError, match=r"does not fit this run: .*; there is no other") as error:
        state.load(tmp_path, {"data": "a"}, 3)
    assert len(str(error.value).splitlines()) == 1
    assert all(torch.equal(p, before[key]) for key, p in state.parameters.items())


def test_the_older_checkpoint_is_taken_where_the_newer_does_not_fit(run_state, tmp_path, capsys):
    state, _, saved = run_state
    torch.save(saved | {"step": 1}, tmp_path / "checkpoint-000001.pt")
    torch.save(saved | {"step": "2"}, tmp_path / "checkpoint-000002.pt")
    state.load(tmp_path, {"data": "a"}, 3)
    assert state.step == 1
    assert "checkpoint-000002.pt does not fit this run" in capsys.readouterr().out
    with pytest.raises(UserError, match="made with another data"):
        state.load(tmp_path, {"data": 3}, 3)
    assert len(checkpoints(tmp_path)) == 2


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
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert one_line(said) == said


def test_a_spreadsheet_computes_nothing():
    cells = ["=1+1", "+x", "-x", "@x", "\tx", "-1.5", "+2", "x=1", ""]
    line = Table(("a",), [[Cell(cell) for cell in cells]]).to_csv().splitlines()[1]
    assert line == "'=1+1,'+x,'-x,'@x,'\tx,-1.5,+2,x=1,"


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
