"""evaluate, inspect, data and train on the sets of the paper, on the command line."""

import json
from dataclasses import replace

import pytest
from paper_folder import write_paper_folder
from scored import HOW, answers, pocket, problems  # noqa: F401

import run as command_line


# ---------------------------------------------------------------- on the command line
def main(*words) -> int:
    return command_line.main([str(word) for word in words])


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    return write_paper_folder(tmp_path_factory.mktemp("paper"), 12)


def test_training_on_a_test_set_is_refused_unless_asked_for_and_then_said(paper, tmp_path, capsys):
    words = (
        "--data",
        "SVAMP",
        "--data-dir",
        paper,
        *("--max-steps 1 --items 3 --set eval.before=false --set eval.max_new_tokens=4").split(),
    )
    assert main(*words, "--out", tmp_path / "no") == 1
    assert "hold the test set SVAMP (3 of 3 problems)" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert main(*words, "--train-on-test", "--out", tmp_path / "yes") == 0
    assert "TRAINED ON THE TEST SET: SVAMP" in capsys.readouterr().out
    assert json.loads((tmp_path / "yes" / "result.json").read_text())["trained_on_test"] == [
        "SVAMP"
    ]
    assert "Trained on the test set" in (tmp_path / "yes" / "report.html").read_text()
    assert (
        main(
            *"evaluate --model pocket-llama --adapter".split(),
            tmp_path / "yes" / "adapter",
            "--data",
            "math-v1",
            "--data-dir",
            paper,
            *"--tests SVAMP --max-new-tokens 4 --out".split(),
            tmp_path / "later",
        )
        == 0
    )
    assert (
        "the adapter was trained on 3 of these 3 problems word for word" in capsys.readouterr().out
    )  # what the adapter saw goes with it


def test_a_run_on_ones_own_file(tmp_path, capsys):
    rows = [
        {
            "question": f"Tom has {n} pens. How many pens does Tom have?",
            "label": n,
            "why": f"Tom has {n} pens. The answer is {n if n % 4 else 99}.",
        }
        for n in range(40)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = (
        "--data",
        tmp_path / "mine.jsonl",
        *(
            "--columns instruction=question,output=why,answer=label --only-right "
            "--max-steps 2 --set test_share=0.2 --set eval.before=false --template "
            "plain"
        ).split(),
    )
    assert main(*words, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "tests mine (8)" in said
    kept = 32 - sum(int(row["label"] % 4 == 0) for row in train_part(rows))
    assert f"{kept} of 32 rows reach the right answer" in said
    prediction = json.loads((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()[0])
    assert (
        prediction["prompt"] == f"Tom has {prediction['gold']} pens. How many pens does Tom have?\n"
    )
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["llm_adapters"]["run"]["template_text"]["text"] == "{instruction}\n"
    assert main("evaluate", tmp_path / "run", "--out", tmp_path / "again") == 0
    assert [
        json.loads(line)["output"]
        for line in (tmp_path / "again" / "predictions.jsonl").read_text().splitlines()
    ] == [
        json.loads(line)["output"]
        for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    ]
    no_answers = tmp_path / "chat.json"
    no_answers.write_text(
        json.dumps(
            [
                {"instruction": "Say hi.", "output": "Hi."},
                {"instruction": "Say bye.", "output": "Bye."},
            ]
        )
    )
    capsys.readouterr()
    assert main("--data", no_answers, "--max-steps", "1", "--out", tmp_path / "untested") == 0
    assert "nothing was measured" in capsys.readouterr().out
    assert "not measured" in (tmp_path / "untested" / "report.html").read_text()


def train_part(rows):
    from data.split import random_split

    return random_split([{"instruction": row["question"], **row} for row in rows], 0.2, 0)[0]


def test_the_stored_template_counts_even_when_ours_changes(tmp_path, monkeypatch, capsys):
    from data import prompts

    assert (
        main(*"--max-steps 1 --items 2 --set eval.before=false --out".split(), tmp_path / "run")
        == 0
    )
    changed = replace(prompts.TEMPLATES["alpaca"], text="Changed: {instruction}\n")
    monkeypatch.setitem(prompts.TEMPLATES, "alpaca", changed)
    assert main("evaluate", tmp_path / "run", "--items", "1", "--out", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[0])[
        "prompt"
    ].startswith("Below is an instruction")
    assert (
        main(
            "evaluate",
            tmp_path / "run",
            *"--items 1 --template plain --out".split(),
            tmp_path / "other",
        )
        == 0
    )
    assert "was trained with the template alpaca, not with plain" in capsys.readouterr().out


def test_what_an_adapter_was_trained_on_is_told_rightly(tmp_path, capsys):
    rows = [
        {
            "instruction": f"Tom has {n} pens. How many?",
            "output": f"The answer is {n}.",
            "answer": str(n),
        }
        for n in range(30)
    ]
    mine, other = tmp_path / "mine.json", tmp_path / "other.json"
    mine.write_text(json.dumps(rows))
    other.write_text(json.dumps([{"instruction": "What is 3 plus 4?", "answer": "7"}]))
    quick = ("--max-steps", "1", "--set", "eval.before=false", "--set", "eval.max_new_tokens=3")
    assert (
        main("--data", mine, "--tests", other, *quick, "--out", tmp_path / "run") == 0
    )  # all 30 rows are trained on, none is held out
    measure = (
        *"evaluate --model pocket-llama --adapter".split(),
        tmp_path / "run" / "adapter",
        "--tests",
        mine,
        "--max-new-tokens",
        "3",
    )
    capsys.readouterr()
    assert main(*measure, "--out", tmp_path / "one") == 0
    said = capsys.readouterr().out
    assert "trained on 30 of these 30 problems word for word" in said
    assert "none is clean" in said
    mine.write_text(json.dumps(rows[:10]))
    assert main(*measure, "--out", tmp_path / "two") == 0
    assert "has changed since" in capsys.readouterr().out
    config = tmp_path / "run" / "adapter" / "adapter_config.json"
    table = json.loads(config.read_text())
    table["llm_adapters"]["run"] |= {"columns": "abc", "seed": [1]}
    config.write_text(json.dumps(table))
    assert (
        main(*measure, "--out", tmp_path / "three") == 0
    )  # what cannot be checked does not cost the answers
    assert "cannot be read as it was" in capsys.readouterr().out
