"""Runs of a grid through a shell command and through Ray; lines that may be started again."""

import contextlib
import json
import shlex
import sys
import threading
from types import SimpleNamespace

import pytest

from experiments.folders import state_of
from experiments.jobs import HERE, Job, Launcher, run_jobs, write_jobs
from experiments.launch import job_lines, launcher
from files.errors import UserError
from files.writing import held
from train.settings import settings


def jobs_in(folder, count=2, **values):
    jobs = [Job(settings(None, None, values), "lora", folder / f"run {n}") for n in range(count)]
    write_jobs(jobs)
    return jobs


def test_a_line_is_the_whole_run_and_quoted(tmp_path):
    job, other = jobs_in(tmp_path)
    words = shlex.split(job_lines([job, other])[0])
    folder = str(tmp_path / "run 0")
    assert words[-5:] == ["--config", f"{folder}.toml", "--out", folder, "--or-resume"]
    assert not {"evaluate", "--resume"} & set(words)
    base = Job(job.settings, "", job.folder)
    assert base.command()[2] == "evaluate"


HALF = {"right": 1, "total": 2, "paper_reader": {"right": 1, "total": 2}}
RESULT = {"model": "m", "data": "d", "after": {"x": HALF}}
RESULT = json.dumps(RESULT | {"steps": 1, "seconds": 1, "trainable_parameters": 1})


def test_a_command_gets_every_line_and_a_run_that_is_lost_is_started_again(tmp_path):
    """The command's first two tries of each run are lost; the third ends it, with any status."""
    jobs, seen, script = jobs_in(tmp_path), tmp_path / "seen", tmp_path / "cluster"
    script.write_text(
        f'echo "$*" >> {seen}\nout="$6"\ntest $(grep -c "$out " {seen}) -lt 3 && exit 137\n'
        f'mkdir -p "$out"; echo \'{RESULT}\' > "$out/result.json"\n'
        "exit 143\n"
    )
    said = []
    with launcher(launch=f"sh {shlex.quote(str(script))} {{}}") as start:
        assert start.at_once is None
        assert run_jobs(jobs, start, said.append) == []
    assert len(seen.read_text().splitlines()) == 6
    assert [line.split(" run")[0] for line in said] == ["[1 of 2]", "[2 of 2]"]
    assert all("50.0% on 1 test set" in line for line in said)


def test_a_run_that_is_never_complete_is_tried_thrice_and_reported(tmp_path):
    (job,) = jobs_in(tmp_path, 1)
    said = []
    with launcher(launch="echo no such node; exit 9; {}") as start:
        assert run_jobs([job], start, said.append) == [job]
    assert said[0].endswith("run 0.log: no such node")
    assert "failed with status 9" in said[0]
    assert (tmp_path / "run 0.log").read_text() == "no such node\n" * 3


def test_a_run_that_another_process_has_is_waited_for(tmp_path):
    """None runs twice at once: --or-resume waits, then finds the run complete."""
    folder, states = tmp_path / "run", []
    thread = threading.Thread(target=lambda: states.append(state_of(folder, "run.toml")))
    with held(folder):
        (folder / "run.toml").write_text("")
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        (folder / "result.json").write_text("{}")
    thread.join(20)
    assert states == ["complete"]
    (folder / "result.json").unlink()
    assert state_of(folder, "run.toml") == "interrupted"
    assert state_of(tmp_path / "none", "run.toml") == "new"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"launch": "srun"}, "needs {} where"),
        ({"launch": "srun {}", "engine": "ray"}, "give one"),
        ({"engine": "dask"}, "unknown engine 'dask'"),
        ({"address": "auto"}, "give --engine ray"),
        ({"at_once": 0}, "at least 1"),
    ],
)
def test_wrong_launchers_are_refused(given, said):
    with pytest.raises(UserError, match=said), launcher(**given):
        pass


class FakeRay:
    """A cluster with GPUs that runs a task when its result is asked for; its first machine dies."""

    def __init__(self):
        self.options, self.cancelled, self.alive, self.given = [], [], False, {}
        self.exceptions = SimpleNamespace(RayError=OSError)

    def init(self, **given):
        self.given, self.alive = given, True

    def cluster_resources(self):
        return {"CPU": 2.0, "GPU": 2.0}

    def remote(self, function):
        def options(**given):
            self.options.append(given)
            return SimpleNamespace(remote=lambda *words: (function, words))

        return SimpleNamespace(options=options)

    def get(self, task):
        function, words = task
        if len(self.options) == 1:
            raise OSError("the node is dead\nand more")
        return function(*words)

    def cancel(self, task):
        self.cancelled.append(task)

    def shutdown(self):
        self.alive = False


def test_ray_counts_gpus_and_a_lost_run_goes_on(tmp_path, monkeypatch):
    """The real one is not in the test environment; docs/grids.md has a trial of it."""
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    (job,) = jobs_in(tmp_path, 1, device="cuda:0,cuda:1", threads=3)
    script = "import sys, pathlib; print('on the node'); p = pathlib.Path(sys.argv[1])\n"
    script += "p.mkdir(); (p / 'result.json').write_text('{}')"
    command = [sys.executable, "-c", script, str(job.folder)]
    monkeypatch.setattr(Job, "command", lambda self: command)
    with launcher(engine="ray", address="auto") as start:
        assert ray.given["address"] == "auto"
        assert run_jobs([job], start, lambda line: None) == []
    assert not ray.alive
    assert [(one["num_gpus"], one["num_cpus"]) for one in ray.options] == [(2, 3)] * 2
    log = (tmp_path / "run 0.log").read_text()
    assert log.splitlines() == ["Ray: the node is dead", "on the node"]
    with launcher(engine="ray") as start:
        assert ray.given["address"] is None  # one is started here
        for device, gpus in (("auto", 1), ("cpu", 0), ("cuda", 1)):
            (job,) = jobs_in(tmp_path, 1, device=device)
            with open(tmp_path / "log", "a") as log:
                _, stop = start.start(job, log)
            assert ray.options[-1]["num_gpus"] == gpus
        stop()
        assert len(ray.cancelled) == 1


def test_a_missing_ray_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    said = "needs the package ray: pip install ray"
    with pytest.raises(UserError, match=said), launcher(engine="ray"):
        pass


def test_interrupted_jobs_are_stopped(tmp_path):
    """Ctrl-C stops what was started, and what waits is not begun."""
    jobs, stopped = jobs_in(tmp_path), threading.Event()

    def start(job, log):
        return lambda: stopped.wait(20) or 0, stopped.set

    def wait():
        raise KeyboardInterrupt

    begun = []
    launchers = Launcher(lambda job, log: begun.append(job) or (wait, stopped.set), at_once=1)
    with contextlib.suppress(KeyboardInterrupt):
        run_jobs(jobs, launchers, lambda line: None)
    assert len(begun) == 1
    assert HERE.tries == 1


def test_nothing_is_written_through_a_link_beside_the_runs(tmp_path):
    """A log is appended to; somebody's folder of a table may have a link in its place."""
    jobs, secret = jobs_in(tmp_path), tmp_path.parent / "secret"
    (tmp_path / "run 1.log").symlink_to(secret)
    with pytest.raises(UserError, match=r"run 1.log is a link"):
        write_jobs(jobs)
    assert not secret.exists()


def test_a_run_that_said_nothing_this_time_is_not_given_an_older_reason(tmp_path):
    (job,), said = jobs_in(tmp_path, 1), []
    (tmp_path / "run 0.log").write_text("of an earlier start\n")
    with launcher(launch="true {}") as start:
        run_jobs([job], start, said.append)
    assert said[0].endswith("run 0.log: it printed nothing, and wrote no result.json")
