"""`benchmark --case processes` gives one process as many threads as each of several."""

import os

import pytest

from benchmarks import scaling


@pytest.mark.parametrize(("given", "threads"), [(None, "1"), ("2", "2")])
def test_all_have_the_same_threads(monkeypatch, tmp_path, given, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    seen = []

    def run_python(code, *arguments, processes, **environment):
        seen.append((processes, environment.get("OMP_NUM_THREADS")))
        yield {work: {"seconds": 1.0, "result": []} for work in ("training", "evaluation")}

    monkeypatch.setattr(scaling, "run_python", run_python)
    list(scaling.scaling_lines("pocket-llama", str(tmp_path / "out"), 1, 2, smoke=True))
    assert seen == [(1, threads), (2, threads)]
