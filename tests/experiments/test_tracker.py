"""What a run says to TensorBoard and Weights & Biases."""

import json
import sys
import types
from typing import ClassVar

import pytest
import torch

import run as command_line
from adapters import named_parameters
from experiments.report import read_log
from experiments.tracker import TRACKERS, check_tracker
from model import UserError, load_model
from train import loop
from train.checkpoint import checkpoints


# ---------------------------------------------------------------- the whole run, and the trackers
class Board:
    """In the place of torch.utils.tensorboard: what was written, by folder."""

    written: ClassVar[dict] = {}

    def __init__(self, folder, purge_step):
        self.values = Board.written.setdefault(folder, {})
        for key in [key for key in self.values if key[1] >= purge_step]:
            del self.values[key]

    def add_scalar(self, name, value, step):
        self.values[name, step] = value

    def flush(self):
        pass

    def close(self):
        self.values["closed", 0] = True


QUICK = (
    *(
        "--adapter lora --max-steps 6 --items 2 --set eval.before=false --set eval.max_new_tokens=2"
    ).split(),
)


def main(*words) -> int:
    return command_line.main([str(word) for word in words])


def test_a_run_with_validation_says_and_draws_what_it_kept(tmp_path, monkeypatch, capsys):
    Board.written = {}
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Board)
    )
    out = tmp_path / "out"
    sets = (
        *(
            "--set train.validation_rows=20 --set train.validate_every=2 --set "
            "train.tracker=tensorboard"
        ).split(),
    )
    values = [3.0, 1.0, 2.0]
    monkeypatch.setattr(loop, "mean_loss", lambda *arguments: values.pop(0))
    assert main(*QUICK, *sets, "--set", "train.save_every=4", "--keep", 2, "--out", out) == 0
    said = capsys.readouterr().out
    assert "20 rows are held out to validate on every 2 steps" in said
    assert "the adapter is that of step 4, the lowest validation loss, 1.0000" in said
    result = json.loads((out / "result.json").read_text())
    assert (result["steps"], result["adapter_step"], result["validation"]) == (
        6,
        4,
        {"best_step": 4, "best_loss": 1.0},
    )
    assert "the adapter is that of step 4" in (out / "report.html").read_text()
    assert [entry.get("validation_loss") for entry in read_log(out / "log.jsonl")] == [
        None,
        3.0,
        None,
        1.0,
        None,
        2.0,
    ]
    assert [path.name for path in checkpoints(out)] == [
        "checkpoint-000004.pt",
        "checkpoint-000006.pt",
    ]

    board = Board.written[str(out / "tensorboard")]
    for name in ("loss", "learning_rate", "gradient_norm", "tokens_per_second"):
        assert [step for step in range(1, 8) if (f"train/{name}", step) in board] == [
            1,
            2,
            3,
            4,
            5,
            6,
        ]
    assert {
        step: value for (name, step), value in board.items() if name == "train/validation_loss"
    } == {2: 3.0, 4: 1.0, 6: 2.0}
    assert board["accuracy/multiarith", 6] == result["after"]["multiarith"]["accuracy"]
    assert board["closed", 0]

    # the file holds the weights of step 4, which the older of the two checkpoints has
    model = load_model("pocket-llama", dtype=torch.float32)
    from adapters import load_adapter

    load_adapter(model, out / "adapter")
    saved = torch.load(out / "checkpoint-000004.pt", weights_only=True)["parameters"]
    assert all(
        torch.equal(parameter, saved[name]) for name, parameter in named_parameters(model).items()
    )


def test_in_tensorboard_a_resumed_run_takes_the_place_of_the_steps_it_repeats(
    tmp_path, monkeypatch
):
    Board.written = {}
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Board)
    )
    for first, last in (
        (1, 5),
        (4, 4),
    ):  # killed after step 5, resumed from the checkpoint of step 3
        tracker = TRACKERS["tensorboard"](tmp_path, {})
        for step in range(first, last + 1):
            tracker.write({"step": step, "loss": 1.0, "skipped": False})
    board = Board.written[str(tmp_path / "tensorboard")]
    assert [step for name, step in board if name == "train/loss"] == [1, 2, 3, 4]
    TRACKERS["tensorboard"](tmp_path, {}).finish(4, {"svamp": 0.5})  # resumed after its last step
    assert board["accuracy/svamp", 4] == 0.5
    assert ("train/loss", 4) in board


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path, monkeypatch):
    calls = []
    fake = types.ModuleType("wandb")
    fake.Error = type("Error", (Exception,), {})
    one = types.SimpleNamespace(
        log=calls.append,
        define_metric=lambda *a, **k: None,
        finish=lambda: calls.append("finished"),
    )
    fake.init = lambda **options: calls.append(options) or one
    monkeypatch.setitem(sys.modules, "wandb", fake)
    check_tracker("wandb")
    for step in (1, 2):  # the second time: resumed
        tracker = TRACKERS["wandb"](tmp_path, {"seed": 1})
        tracker.write({"step": step, "loss": 0.5, "skipped": False, "validation_loss": None})
        tracker.finish(step, {"svamp": 0.25})
    first, second = calls[0], calls[4]
    assert first["id"] == second["id"]
    assert (first["resume"], first["config"], first["dir"]) == ("allow", {"seed": 1}, str(tmp_path))
    assert calls[1:4] == [
        {"loss": 0.5, "skipped": 0.0, "step": 1},
        {"accuracy/svamp": 0.25, "step": 1},
        "finished",
    ]

    def refused(**options):
        raise fake.Error("api_key not configured\nmore")

    fake.init = refused
    with pytest.raises(
        UserError, match="wandb does not start: api_key not configured; WANDB_MODE=offline keeps"
    ):
        TRACKERS["wandb"](tmp_path, {})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tensorboard", "pip install tensorboard"),
        ("wandb", "pip install wandb"),
        ("tensorbord", "did you mean 'tensorboard'"),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line_before_the_model_is_loaded(
    tmp_path, monkeypatch, capsys, name, said
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(
        "experiments.prepare.load_base", lambda *_: pytest.fail("the model was loaded")
    )
    assert main(*QUICK, "--set", f"train.tracker={name}", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
