"""Data sets of the hub: which files are chosen and fetched, and one line for each way that can
fail.
"""

import json
from pathlib import Path

import processes
import pytest
from fake_hub import Hub, serving
from processes import ROOT

from data.hub import choose, is_repository
from model import UserError


class Asked:
    """A hub on this machine, and do(code): the lines that code prints in a new process that sees
    no other hub.
    """

    def __init__(self, hub: Hub, address: str, home: Path):
        self.hub, self.home = hub, home
        self.variables = {"HF_ENDPOINT": address, "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                          "LLM_ADAPTERS_CACHE": str(home / "ours")}  # fmt: skip

    def add(self, repo: str, files: dict[str, str]):
        folder = self.home / "repos" / repo
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        self.hub.add(f"datasets/{repo}", folder)

    def do(self, *codes: str, **environment) -> list[str]:
        """What each piece of code evaluates to, as JSON; or the one line of its UserError."""
        lines = [f"import sys, json; sys.path.insert(0, {str(ROOT)!r})",
        "from data.sources import load_data", "from data.hub import hub_tables",
                 "from model import UserError", "import time",
                 "time.sleep = lambda seconds: None"]  # fmt: skip
        for code in codes:
            lines += [
                "try:",
                f"    print(json.dumps({code}, default=str))",
                "except UserError as error:",
                "    print(error)",
            ]
        variables = self.variables | environment
        done = processes.finish("-c", "\n".join(lines), environment=variables)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == len(codes), done.stdout
        return done.stdout.splitlines()


@pytest.fixture
def hub(tmp_path):
    made = Hub()
    with serving(made) as address:
        yield Asked(made, address, tmp_path)


def rows(*questions: str) -> str:
    return "\n".join(
        json.dumps({"question": text, "solution": f"It is {i}.", "answer": i})
        for i, text in enumerate(questions)
    )


COLUMNS = "columns={'instruction': 'question', 'output': 'solution'}"


def test_rows_of_a_hub_data_set(hub):
    hub.add("someone/data", {
        "train.jsonl": rows("a", "b", "c"), "test.jsonl": rows("d"), "README.md": "no",
        "pictures/train.png": "no", "train.parquet": "the same in another form",
    })  # fmt: skip
    load = (
        "(lambda found: [found.name, found.train, found.tests, "
        f"found.reads])(load_data('someone/data', {COLUMNS}))"
    )
    name, train, tests, reads = json.loads(hub.do(load)[0])
    assert name == "someone/data"
    assert [row["instruction"] for row in train] == ["a", "b", "c"]
    assert tests == {
        "data": [{"instruction": "d", "input": "", "output": "It is 0.", "answer": "0"}]
    }
    assert reads == {"data": "number"}
    assert sorted(hub.hub.gets) == ["test.jsonl", "train.jsonl"]  # nothing else is fetched
    hub.hub.gets.clear()
    assert json.loads(hub.do(load, HF_ENDPOINT="http://127.0.0.1:9")[0]) == [
        name,
        train,
        tests,
        reads,
    ]  # as it was
    assert hub.hub.gets == []


def test_several_configurations(hub):
    files = {
        f"{name}/{split}-00000-of-00001.jsonl": rows(name, split)
        for name in ("main", "socratic")
        for split in ("train", "test")
    }
    hub.add("someone/two", files)
    neither, main, none = hub.do(
        "hub_tables('someone/two')",
        f"load_data('someone/two/socratic', {COLUMNS}).train",
        "hub_tables('someone/two/mian')",
    )
    assert neither == (
        "someone/two has several configurations: main, socratic; choose one "
        "with --data someone/two/NAME"
    )
    assert json.loads(main)[0]["instruction"] == "socratic"
    assert none.startswith("the configuration mian of someone/two holds no train or test file")
    assert set(hub.hub.gets) == {
        "socratic/train-00000-of-00001.jsonl",
        "socratic/test-00000-of-00001.jsonl",
    }


def test_every_refusal_is_one_line(hub):
    hub.add("someone/data", {"train.jsonl": rows("a")})
    hub.add("someone/empty", {"README.md": "no", "data.arrow": "no"})
    hub.add("someone/broken", {"train.jsonl": "{"})
    hub.add("someone/other", {"train.jsonl": '{"premise": "a", "hypothesis": "b"}'})
    hub.hub.refuse |= {
        "datasets/someone/gated": (403, "GatedRepo"),
        "datasets/someone/token": (401, ""),
        "datasets/someone/down": (500, ""),
    }
    cases = {
        "load_data('someone/nothing')": "the hub has no repository 'someone/nothing'",
        "load_data('someone/gated')": (
            "is gated: accept its licence on the hub and set HF_TOKEN, or give a "
            "file of your own with --data"
        ),
        "load_data('someone/token')": "HF_TOKEN",
        "load_data('someone/down')": "the hub answers 500",
        "load_data('someone/empty')": (
            "someone/empty holds no train or test file that is read here (.json, "
            ".jsonl, .csv, .tsv, .parquet); its files: none"
        ),
        "load_data('someone/broken')": "line 1: cannot be read",
        "load_data('someone/other')": (
            "has no column 'instruction', it has 'premise', 'hypothesis': name it "
            "with --columns instruction=COLUMN"
        ),
        "load_data('some one/data')": "not a repository name of the hub",
        "load_data('someone/')": "not a repository name of the hub",
    }
    for found, said in zip(hub.do(*cases), cases.values(), strict=True):
        assert said in found
    assert (
        "cannot be reached" in hub.do("load_data('someone/data')", HF_HUB_OFFLINE="1")[0]
    )  # never fetched


def test_a_broken_note_or_cache_is_no_data(hub):
    hub.add("someone/data", {"train.jsonl": rows("a")})
    path = Path(json.loads(hub.do("hub_tables('someone/data')")[0])["train"][0])
    note = hub.home / "ours" / "hub" / "someone--data.json"
    ask = "hub_tables('someone/data')"
    broken = [
        "",
        "{}",
        "[1, {}]",
        '["a", 5]',
        '["a", {"train": [1]}]',
        '["a", {"train": ["train.jsonl"]}]',
    ]
    codes = [
        f"(open({str(note)!r}, 'w').write({text!r}), {ask})[1]"
        for text in (note.read_text(), *broken, note.read_text())
    ]
    there, *without, gone = hub.do(
        *codes[:-1], f"(__import__('os').unlink({str(path)!r}), {codes[-1]})[1]", HF_HUB_OFFLINE="1"
    )
    assert json.loads(there) == {"train": [str(path)]}
    for said in (*without, gone):
        assert "cannot be reached" in said


# ---------------------------------------------------------------- which files
@pytest.mark.parametrize(
    ("listed", "chosen"),
    [
        (["train.json", "test.json", "validation.json"],
            {"train": ["train.json"], "test": ["test.json"], "validation": ["validation.json"]}),
        (["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet"],
         {"train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]}),
        (["My_Train.CSV", "my-test_v1.csv"], {"train": ["My_Train.CSV"],
            "test": ["my-test_v1.csv"]}),
        (["train/0.jsonl", "train/1.jsonl", "dev/0.jsonl"],
            {"train": ["train/0.jsonl", "train/1.jsonl"], "validation": ["dev/0.jsonl"]}),
        (["train.json", "val.json", "contest.json", "trained.json"],
            {"train": ["train.json"], "validation": ["val.json"]}),
        (["train.parquet", "train.jsonl", "test.parquet"],
            {"train": ["train.jsonl"], "test": ["test.parquet"]}),
        (["train.json", "test.json", "extra/train.json"],
            {"train": ["train.json"], "test": ["test.json"]}),
    ],
)  # fmt: skip
def test_files_by_the_split_in_their_names(listed, chosen):
    assert choose("someone/data", "", listed) == chosen


def test_configurations_are_folders():
    listed = ["a/train.json", "b/train.json", "b/test.json"]
    assert choose("someone/data", "b", listed) == {
        "train": ["b/train.json"],
        "test": ["b/test.json"],
    }
    assert choose("someone/data", "b", [f"data/{name}" for name in listed])["test"] == [
        "data/b/test.json"
    ]
    with pytest.raises(
        UserError, match=r"someone/data holds no train or test file .*; its files: a.json"
    ):
        choose("someone/data", "", ["a.json"])


def test_what_can_be_a_repository():
    assert is_repository("someone/data")
    assert is_repository("someone/data/main")
    for name in (
        "data",
        "a/b/c/d",
        "./data/set",
        "/data/set",
        "~/data",
        "data/set.json",
        "data/SET.CSV",
    ):
        assert not is_repository(name)
