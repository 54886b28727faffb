"""Checkpoints: which are kept, when one goes, and that resuming ends with the same bits."""

import os
from dataclasses import replace

import pytest
from training_runs import S, model_with, run, same, state

from model import UserError
from train import pipeline
from train.checkpoint import checkpoints, load_checkpoint, save_checkpoint


# --------------------------------------------- interrupted within a step; checkpoints that are kept
def test_killed_between_two_micro_batches_and_resumed_ends_with_the_same_bits(
    folder, tmp_path, monkeypatch
):
    """Half a step's gradient is there when the end comes; nothing of it may be left."""
    whole = model_with(folder, "lora", dropout=0.3)
    run(whole, tmp_path, S)
    half = model_with(folder, "lora", dropout=0.3)
    true_loss, calls = pipeline.summed_loss, []

    def killed(*arguments):
        calls.append(1)
        if (
            len(calls) == 3 * 4 + 2 + 1
            # 3 micro-batches in each of four steps (6, 6, 6, 2 rows: the last has one), then in the
            # middle of the sixth
        ):
            raise KeyboardInterrupt
        return true_loss(*arguments)

    monkeypatch.setattr(pipeline, "summed_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run(half, tmp_path, replace(S, save_every=2))
    assert load_checkpoint(tmp_path, {"base model": "b"})["step"] == 4
    rest = model_with(folder, "lora", dropout=0.3)
    run(rest, tmp_path, replace(S, save_every=2), resume=True)
    assert same(state(rest), state(whole))


def test_the_newest_checkpoints_are_kept_and_the_newest_that_can_be_read_is_resumed(
    folder, tmp_path, capsys
):
    s = replace(S, save_every=2, keep=3)
    whole = model_with(folder)
    run(whole, tmp_path, s)
    assert [path.name for path in checkpoints(tmp_path)] == [
        f"checkpoint-00000{step}.pt" for step in (4, 6, 8)
    ]
    newest, middle = checkpoints(tmp_path)[-1], checkpoints(tmp_path)[-2]
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # one bit, in a tensor
    newest.write_bytes(damaged)
    capsys.readouterr()
    rest = model_with(folder)
    _, entries = run(rest, tmp_path, s, resume=True)
    said = capsys.readouterr().out
    assert f"{newest} cannot be read as a checkpoint" in said
    assert f"the one before it is tried, {middle.name}" in said
    assert [entry["step"] for entry in entries] == [7, 8]
    assert same(state(rest), state(whole))
    for path in checkpoints(tmp_path):
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read"):
        run(model_with(folder), tmp_path, s, resume=True)


def test_an_old_checkpoint_goes_only_when_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"fingerprints": {}})
    there = []
    true_fsync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda handle: (
            there.append((tmp_path / "checkpoint-000001.pt").is_file()) or true_fsync(handle)
        ),
    )
    save_checkpoint(tmp_path, 2, {"fingerprints": {}})
    assert there == [True, True]
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-000002.pt"]
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, step, {"fingerprints": {}}, keep=3)
    assert [path.name[11:-3] for path in checkpoints(tmp_path)] == [
        "000002",
        "999999",
        "1000000",
    ]  # by number, not by letter
    save_checkpoint(
        tmp_path, 3, {"fingerprints": {}}, keep=2
    )  # a run that went back to step 2: what comes later is of no use
    assert [path.name for path in checkpoints(tmp_path)] == [
        "checkpoint-000002.pt",
        "checkpoint-000003.pt",
    ]
