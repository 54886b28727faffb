"""Axes of a grid: which runs they give, with which settings, and what is refused before a run."""

import pytest

from eval.score import Score
from experiments.comparable import compare, conditions_of
from experiments.entries import Entry
from experiments.grid import grid_file, make_grid
from experiments.grid_jobs import jobs_of
from experiments.table import summary, write_table
from model import UserError

START = """
models = ["pocket-llama"]
adapters = ["lora"]
data = "DATA"
base = false
"""


def jobs(tmp_path, text, **given):
    path = tmp_path / "grid.toml"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "1"}\n' * 4)
    path.write_text(START.replace("DATA", str(rows)) + text)
    return jobs_of(make_grid(path, **given), tmp_path / "out")


def values(jobs, *paths):
    return [tuple(job.values[path] for path in paths) for job in jobs]


def test_a_product_has_every_combination_with_its_settings(tmp_path):
    found = jobs(
        tmp_path,
        """
seeds = [0, 1]
[settings]
adapter.r = 3  # the axis lies over it
[axes]
adapter.r = [2, 4]
train.prompt_weight = [0.0, 0.5]
adapter.sites = [["q"], ["up", "down"]]
""",
    )
    assert len(found) == 2 * 2 * 2 * 2
    for job in found:
        r, weight, sites = values([job], "adapter.r", "train.prompt_weight", "adapter.sites")[0]
        part = job.settings.adapter.parts[""]
        assert (part.options.r, part.sites, part.options.alpha) == (r, tuple(sites), 16.0)
        assert job.settings.train.prompt_weight == weight
        assert job.settings.train.learning_rate == 0.01  # pocket-tune's
    assert found[5].folder.name == "pocket-llama-lora-r=2-sites=up+down-prompt_weight=0-seed1"
    assert len({job.folder for job in found}) == len(found)


def test_a_list_takes_the_values_together_and_a_sample_draws_the_same_each_time(tmp_path):
    axes = "[axes]\nadapter.r = [2, 4, 8]\nadapter.alpha = [4.0, 8.0, 16.0]\n"
    together = values(jobs(tmp_path, f'combine = "list"\n{axes}'), "adapter.r", "adapter.alpha")
    assert together == [(2, 4.0), (4, 8.0), (8, 16.0)]
    drawn = values(jobs(tmp_path, f"sample = 4\n{axes}"), "adapter.r", "adapter.alpha")
    assert drawn == values(jobs(tmp_path, f"sample = 4\n{axes}"), "adapter.r", "adapter.alpha")
    whole = values(jobs(tmp_path, axes), "adapter.r", "adapter.alpha")
    assert len(set(drawn)) == 4
    assert set(drawn) < set(whole)
    assert drawn != whole[:4]
    assert whole[:4] == [(2, 4.0), (2, 8.0), (2, 16.0), (4, 4.0)]  # the last axis changes fastest


def test_parts_have_adapters_and_axes_of_their_own_over_the_grid(tmp_path):
    text = """
[settings.train]
epochs = 2
[axes]
train.learning_rate = [0.1]
[[parts]]
adapters = ["lora"]
axes.adapter.r = [2, 4]
[[parts]]
adapters = ["series"]
settings.train.clip = 0.5
axes.adapter.size = [3]
"""
    found = jobs(tmp_path, text)
    assert [job.folder.name for job in found] == [
        "pocket-llama-lora-learning_rate=0.1-r=2",
        "pocket-llama-lora-learning_rate=0.1-r=4",
        "pocket-llama-series-learning_rate=0.1-size=3",
    ]
    assert {job.settings.train.epochs for job in found} == {2}
    assert [job.settings.train.clip for job in found] == [1.0, 1.0, 0.5]
    chosen = jobs(tmp_path, text, adapters=["series"])
    assert [job.adapter for job in chosen] == ["series"]


def test_the_model_alone_runs_once_for_each_value_that_it_depends_on(tmp_path):
    text = 'adapters = ["lora"]\nbase = true\nmodels = ["pocket-llama"]\n'
    text += '[axes]\nadapter.r = [2, 4]\ndata = ["wordproblems", "rows.jsonl"]\n'
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "1"}\n' * 4)
    path = tmp_path / "grid.toml"
    path.write_text(text.replace("rows.jsonl", str(rows)))
    found = jobs_of(make_grid(path), tmp_path / "out")
    alone = [job for job in found if not job.adapter]
    assert [job.settings.data for job in alone] == ["wordproblems", str(rows)]
    assert len(found) == 2 + 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[axes]\nlerning_rate = [1]", "setting in [axes] 'lerning_rate'"),
        ("[axes]\nlearning_rate = [1]", "did you mean 'train.learning_rate'"),
        ("[axes]\ntrain.learning_rat = [1]", "did you mean 'train.learning_rate'"),
        ("[axes]\nadapter.size = [1]", "axis adapter.size = 1 with lora: adapter: unknown option"),
        ("[axes]\nadapter.r = [4, 0]", "axis adapter.r = 0 with lora: "),
        ("[axes]\nadapter.sites = [['q'], ['qq']]", "sites = qq with lora: unknown site of llama"),
        ("[axes]\ntrain.schedule = ['lineal']", "axis train.schedule = lineal with lora: "),
        ("[axes]\ntrain.patience = [3]", "axis train.patience = 3 with lora: "),
        ("[axes]\nadapter.r = 4", "axis adapter.r = 4 should be a list"),
        ("[axes]\nadapter.r = []", "axis adapter.r = [] should be a list"),
        ("[axes]\nadapter.r = [4, 4]", "axis adapter.r has 4 twice"),
        ("[axes]\nseed = [4, 5]", "use its own seeds"),
        ("[axes]\nadapter.preset = ['lora']", "use its own adapters"),
        ("set = ['adapter.r=4']\n[axes]\nadapter.r = [4]", "adapter.r is an axis of the grid"),
        ("combine = 'list'\n[axes]\nadapter.r = [4]\ntrain.epochs = [1, 2]", "of one length"),
        ("sample = 3\n[axes]\nadapter.r = [4]", "more than the 1 combinations"),
        ("sample = -1", "from 0"),
        ("combine = 'zip'", "should be product or list"),
        ("[[parts]]\nparts = [{ seeds = [1] }]", "[[parts]] 1: parts belongs to the whole grid"),
        ("[pocket.pocket]\nseeds = [1]", "[pocket]: pocket belongs to the whole grid"),
        ("[[parts]]\nadapter = ['lora']", "[[parts]] 1: unknown setting 'adapter'"),
        ("[[parts]]\nadapters = ['lora', 'ia3']\naxes.adapter.r = [4]", "adapter.r = 4 with ia3"),
    ],
)
def test_what_an_axis_cannot_be_is_said_with_its_name_and_value(text, said, tmp_path):
    with pytest.raises(UserError) as error:
        jobs(tmp_path, text, pocket=text.startswith("[pocket"))
    assert said in str(error.value)


COUNTS = {  # of experiments/grids: runs on the models of the paper, and of the pocket form
    "placement": (9, 9), "size": (16, 12), "rates": (32, 8), "table1": (12, 4), "final": (32, 5),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("pocket", [False, True])
def test_each_ready_grid_has_its_runs(name, pocket, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.grid.load_data", lambda *args: None)
    if not pocket:  # the sites are those of the pocket form
        monkeypatch.setattr("experiments.grid_jobs.with_adapter", lambda *args: None)
    found = jobs_of(make_grid(grid_file(name), pocket=pocket), tmp_path)
    assert len(found) == COUNTS[name][pocket]
    models = {job.model for job in found}
    assert models == {"pocket-llama"} if pocket else "pocket-llama" not in models
    if not pocket and name != "rates":  # each run but for sizes and places is a published row
        ours = [conditions_of(job.settings) for job in found]
        same = [any(not c.differs for c in compare(one)) for one in ours]
        assert sum(same) == {"placement": 4, "size": 4, "table1": 12, "final": 32}[name]


def test_pocket_needs_a_table_of_the_file(tmp_path):
    with pytest.raises(UserError, match=r"no \[pocket\] table"):
        jobs(tmp_path, "", pocket=True)
    (job,) = jobs(tmp_path, "[pocket]\nadapters = ['ia3']", pocket=True)
    assert job.adapter == "ia3"


def test_a_grid_goes_by_its_name_or_its_file(tmp_path):
    assert grid_file("size").parent.name == "grids"
    (tmp_path / "mine").write_text("")
    assert grid_file(str(tmp_path / "mine")) == tmp_path / "mine"
    with pytest.raises(UserError, match="unknown grid 'sise'; did you mean 'size'"):
        grid_file("sise")


def test_the_table_has_a_column_for_each_axis(tmp_path):
    def entry(r, right, seed=0):
        score = {"gsm8k": Score(right, 10)}
        return Entry("llama-7b", "lora", seed, score, {}, values={"adapter.r": r})

    entries = [entry(2, 4), entry(2, 6, seed=1), entry(4, 9)]
    text = summary(entries, None).to_markdown()
    assert "| model | adapter | r | parameters |" in text
    assert "| llama-7b | lora | 2 | 0 |  | mean of 2 seeds | 50.0 [40.0, 60.0] |" in text
    assert "| llama-7b | lora | 4 | 0 |  | strict | 90.0 " in text
    write_table(tmp_path, entries, None)
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0].endswith(",adapter.r")
    assert lines[-1].endswith(",4")
