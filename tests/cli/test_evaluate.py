"""`evaluate` on the sets of the paper, its folder, and predictions that are read back."""

import json

import pytest
from paper_folder import write_paper_folder
from scored import HOW, answers, pocket, problems  # noqa: F401

import run as command_line
from data.sources import load_data
from eval import predict as predicting
from eval.score import read_predictions, write_predictions
from model import UserError


# ---------------------------------------------------------------- on the command line
def main(*words) -> int:
    return command_line.main([str(word) for word in words])


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    return write_paper_folder(tmp_path_factory.mktemp("paper"), 12)


def test_evaluate_inspect_and_the_row_beside_table_1(paper, tmp_path, capsys):
    out = tmp_path / "out"
    words = (
        *"evaluate --model pocket-llama --data math-v1 --data-dir".split(),
        paper,
        "--max-new-tokens",
        "5",
    )
    assert main(*words, "--out", out) == 0
    said = capsys.readouterr().out
    assert "Table 1 of arXiv 2304.01933v1" in said
    assert "no row for pocket-llama without an adapter" in said
    assert "no difference is given: MultiArith 3 of 120" in said
    assert "answers ran out of tokens" in said
    facts = json.loads((out / "result.json").read_text())
    assert set(facts["scores"]["gsm8k"]) >= {"accuracy", "interval_95", "paper_reader", "cut_off"}
    assert (facts["template"], facts["decoding"]) == ("alpaca", "greedy")
    assert sorted(path.name for path in out.iterdir()) == [
        "evaluate.toml",
        "evaluation.json",
        "predictions.jsonl",
        "result.json",
    ]
    assert main("inspect", out, "--wrong", "--set", "gsm8k", "--limit", "1") == 0
    assert "gsm8k 0" in capsys.readouterr().out
    assert main("inspect", out, "--json", "--limit", "0") == 0
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 18
    for words, status, message in (
        (("inspect", tmp_path), 1, "holds no predictions.jsonl"),
        (("inspect", out, "--set", "gsm8"), 1, "did you mean 'gsm8k'"),
        (("inspect", out, "--reader", "strikt"), 1, "did you mean 'strict'"),
        (("evaluate", "--resume", out), 1, "is complete"),
        (("evaluate", "--resume", tmp_path), 1, "no evaluation to continue"),
        (("evaluate", "--resume", out, "--items", "2"), 1, "give no other option"),
        (
            (
                *"evaluate --model pocket-llama --tests gsm8k --data-dir".split(),
                paper,
                *"--data math-v1 --scoring likelihood".split(),
            ),
            1,
            "no options",
        ),
        (
            ("evaluate", "--model", "pocket-llama", "--temperature", "1", "--beams", "2"),
            1,
            "excludes beams",
        ),
        (("evaluate", "--model", "pocket-llama", "--seeds", "0,1"), 1, "eval.temperature"),
        (("evaluate", "--model", "pocket-llama", "--top-p", "1.5"), 1, "top_p"),
        (("evaluate", "--model", "pocket-llama", "--template", "chatt"), 1, "'chat'"),
        (("evaluate", "--model", "pocket-llama", "--template", "chat"), 1, "has no chat template"),
        (("evaluate", "--model", "pocket-llama", "--tests", "gsm9k"), 1, "did you mean 'gsm8k'"),
        (("evaluate", "--teacher"), 1, "--data-dir"),
        (("evaluate", "--teacher", "--items", "3"), 1, "--items has no effect"),
        (("evaluate", "--model", "pocket-llama", "--set", "train.epochs=2"), 1, "nothing to train"),
        (("evaluate", "--model", "pocket-llama", "--set", "template=plain"), 1, "use --template"),
        (("evaluate", "--model", "pocket-llama", "--tests", ","), 1, "names no set"),
        (
            ("evaluate", "--model", "pocket-llama", "--columns", "instruction=question"),
            1,
            "has its own",
        ),
        (("evaluate", "--model", "pocket-llama", "--beams", "100000"), 1, "up to 1,000"),
        (
            (
                *(
                    "evaluate --model pocket-llama --scoring likelihood --tests aqua "
                    "--max-new-tokens 9"
                ).split(),
            ),
            1,
            "likelihoods take none",
        ),
        (("data", "list", "gsm8k"), 1, "names does not apply to data list"),
        (("data", "show", "gsm8k", "--keep-wrong"), 1, "--keep-wrong does not apply to data show"),
        (
            ("--data", "none", "--max-steps", "1", "--out", out / "none"),
            1,
            "has no rows to train on",
        ),
    ):
        assert main(*words) == status, words
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error, words


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, SystemExit])  # Ctrl-C, SIGTERM
def test_an_evaluation_that_was_stopped_is_continued_by_its_folder(
    paper, tmp_path, capsys, monkeypatch, stopped
):
    out = tmp_path / "out"
    words = (
        *"evaluate --model pocket-llama --data math-v1 --data-dir".split(),
        paper,
        *"--max-new-tokens 5 --batch-size 4".split(),
    )
    assert main(*words, "--out", tmp_path / "whole") == 0
    write, kept = predicting.Journal.write, []

    def write_or_stop(journal, answer):
        if len(kept) == 5:
            raise stopped
        kept.append(answer)
        write(journal, answer)

    monkeypatch.setattr(predicting.Journal, "write", write_or_stop)
    with pytest.raises(stopped):
        main(*words, "--out", out)
    assert f"evaluate --resume {out}" in capsys.readouterr().out
    monkeypatch.setattr(predicting.Journal, "write", write)
    assert main(*words, "--out", out) == 1
    assert "continue it with" in capsys.readouterr().err
    assert main("evaluate", "--resume", out) == 0
    assert (out / "predictions.jsonl").read_text() == (
        tmp_path / "whole" / "predictions.jsonl"
    ).read_text()


def test_nobody_goes_on_with_an_evaluation_that_is_running(paper, tmp_path, capsys, monkeypatch):
    respond, others = predicting.generated, []

    def meanwhile(*arguments):
        monkeypatch.setattr(predicting, "generated", respond)
        others.append(main("evaluate", "--resume", tmp_path / "out"))
        return respond(*arguments)

    monkeypatch.setattr(predicting, "generated", meanwhile)
    words = (
        *"evaluate --model pocket-llama --data math-v1 --data-dir".split(),
        paper,
        "--max-new-tokens",
        "5",
    )
    assert main(*words, "--out", tmp_path / "out") == 0
    assert others == [1]
    assert f"another process is running in {tmp_path / 'out'}" in capsys.readouterr().err
    assert (
        main(
            *"evaluate --model pocket-lama --data math-v1 --data-dir".split(),
            paper,
            "--out",
            tmp_path / "no",
        )
        == 1
    )
    assert not (tmp_path / "no").exists()


def test_predictions_with_any_text_are_read_back_and_malformed_ones_are_named(tmp_path):
    good = {
        "set": "a",
        "index": 0,
        "instruction": "Tom\u2028has\x85",
        "prompt": "p",
        "gold": "1",
        "output": "x\u2029",
        "answer": 1.0,
        "right": True,
        "paper_answer": None,
        "paper_right": False,
    }
    path = tmp_path / "predictions.jsonl"
    both = [good, good | {"index": 1}]
    write_predictions(path, both)
    assert read_predictions(path) == both
    for change in (
        {"paper_answer": ...},
        {"index": "0"},
        {"right": "yes"},
        {"output": None},
        {"likelihoods": [1]},
        {"likelihoods": {"a": "x"}},
    ):
        one = {key: value for key, value in (good | change).items() if value is not ...}
        path.write_text(json.dumps(good) + "\n" + json.dumps(one) + "\n")
        with pytest.raises(UserError, match=r"predictions\.jsonl, line 2 is not a prediction"):
            read_predictions(path)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read as predictions"):
        read_predictions(path)


def test_a_malformed_journal_is_answered_anew(pocket, problems, tmp_path):
    journal = tmp_path / "answers.part"
    whole = answers(pocket, problems, HOW, journal=journal)
    header = journal.read_text().split("\n")[0]
    odd = [
        '{"job": 1}',
        '{"job": [5], "output": "a"}',
        '{"job": 2, "output": 5}',
        '{"job": 3, "output": "a", "likelihoods": {"a": "x"}}',
        "null",
        "[1]",
        "x",
    ]
    journal.write_bytes("\n".join([header, *odd]).encode() + b"\n\xff\xfe\n")
    assert answers(pocket, problems, HOW, journal=journal) == whole


def test_two_test_sets_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.json").write_text(
            json.dumps([{"instruction": "1 + 1?", "answer": "2"}])
        )
    for names in (
        [str(tmp_path / "a" / "test.json"), str(tmp_path / "b" / "test.json")],
        ["gsm8k", "GSM8K"],
    ):
        with pytest.raises(UserError, match="two test sets are called"):
            load_data("wordproblems", tests=names)


def test_a_full_disk_while_answering_is_one_line(pocket, problems):
    import os
    from pathlib import Path

    from eval.journal import Journal

    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(UserError, match="cannot write /dev/full"), Journal(Path("/dev/full"), "x"):
        pass
