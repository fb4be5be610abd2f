"""Real runs in real sandboxes: what is the same is not run again, what is not the same is."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest

import sage_sandbox as sage
from sage_sandbox.dispatch.dispatcher import Dispatcher
from sage_sandbox.document import document

COUNT = "import pathlib\ndef run():\n    return len(pathlib.Path('{}').read_text().split())\n"
TWO = "def run():\n    return 2\n"
SUM = "def run(inputs):\n    return inputs['one'] + 1\n"
BOTH = "def run(inputs):\n    return [inputs['sum'], inputs['two'].strip()]\n"


def phase(name, operation, *needs):
    return {"id": name, "name": name.title(), "operations": operation, "dependencies": list(needs)}


def python(code, **fields):
    return {"type": "python", "code": code, **fields}


FLOW = {
    "name": "words",
    "phases": [
        phase("one", python(COUNT.format("one.txt"), policy={"read": ["one.txt"]})),
        phase("two", {"type": "command", "argv": ["wc", "-w", "two.txt"], "policy": {"read": ["two.txt"]}}),
        phase("sum", python(SUM), "one"),
        phase("both", python(BOTH), "sum", "two"),
    ],
}


class Project:
    def __init__(self, path):
        self.path = path
        self.write("one.txt", "a b c")
        self.write("two.txt", "a b")
        self.flow(FLOW)

    def write(self, name, text):
        (self.path / name).write_text(text)

    def flow(self, flow):
        self.write("t.json", json.dumps(flow))

    def one(self, code="def run():\n    return 1\n", **fields):
        self.flow({"name": "x", "phases": [phase("p", python(code, **fields))]})

    def run(self, *allow, **given):
        given.setdefault("restart", True)
        self.result = sage.run(self.path / "t.json", "f", project=self.path, allow=allow or ["read:."], **given)
        assert self.result.ok, self.result.errors
        return {phase.id for phase in self.result.phases for item in phase.operations if item.outcome.cached_s is None}

    def entries(self):
        return sorted(path for path in (self.path / ".sage/cache").iterdir() if len(path.name) == 64)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project")


@pytest.fixture
def no_workers(monkeypatch):
    def refuse(self, wanted):
        raise AssertionError("a worker is started")

    def arm():
        monkeypatch.setattr(Dispatcher, "grow", refuse)

    return arm


def test_a_second_identical_run_executes_nothing_starts_no_worker_and_says_so(project, no_workers):
    said: list[Any] = []
    assert project.run() == {"one", "two", "sum", "both"}
    first = [item.outcome.value() for phase in project.result.phases for item in phase.operations]
    no_workers()

    assert project.run(observers=[sage_progress(said)]) == set()

    assert first == [item.outcome.value() for phase in project.result.phases for item in phase.operations]
    metrics = document(project.result)["results"]["metrics"]
    assert (4, 4, 1.0) == (metrics["cached"], metrics["cacheAsked"], metrics["cacheHitRate"])
    assert any("one/op-1 cached, " in line for line in said)
    assert "4 operations, 4 cached, " in said[-1]


def sage_progress(lines):
    from sage_sandbox.observe.progress import Progress

    class Saying(Progress):
        def say(self, line):
            lines.append(line)

    return Saying()


def test_one_changed_file_runs_exactly_what_depends_on_it(project):
    project.run()

    project.write("one.txt", "a b c d e")

    assert project.run() == {"one", "sum", "both"}
    project.write("one.txt", "a b c")
    assert project.run() == set()


def test_the_same_result_again_runs_nothing_that_depends_on_it(project):
    project.run()

    project.write("one.txt", "x y z")

    assert project.run() == {"one"}


def test_a_changed_parameter_code_limit_or_file_name_runs_again(project):
    project.one(params={"n": 1})
    project.run()
    same = {"params": {"n": 1}}
    for fields in ({"params": {"n": 2}}, {**same, "limits": {"pids": 7}}, {**same, "code": TWO}):
        project.one(**fields)
        assert project.run() == {"p"}
    project.one(params={"n": 1})
    assert project.run() == set()


def test_a_granted_value_counts_and_is_written_nowhere(project, monkeypatch):
    project.one("import os\ndef run():\n    return len(os.environ['CITY'])\n", policy={"env": ["CITY"]})
    monkeypatch.setenv("CITY", "an-unusual-value")
    assert project.run("env:CITY") == {"p"}
    assert project.run("env:CITY") == set()

    monkeypatch.setenv("CITY", "another-one")

    assert project.run("env:CITY") == {"p"}
    kept = b"".join(path.read_bytes() for path in (project.path / ".sage").rglob("*") if path.is_file())
    assert b"an-unusual-value" not in kept


@pytest.mark.parametrize("option", [{"cache": False}, {"state": False, "restart": False}])
def test_without_a_cache_everything_runs_and_nothing_is_kept(project, option):
    assert project.run(**option) == {"one", "two", "sum", "both"}
    assert not (project.path / ".sage/cache").exists()
    project.run()

    assert project.run(**option) == {"one", "two", "sum", "both"}


def test_what_its_template_says_holds(project):
    project.one(cache=False)
    assert (project.run(), project.run()) == ({"p"}, {"p"})

    project.one(cache={"ttl": "1ms"})
    assert (project.run(), project.run()) == ({"p"}, {"p"})
    project.one(cache={"ttl": "7d"})
    assert project.run() == set()


def test_the_users_limit_of_age_holds(project, monkeypatch):
    project.run()
    monkeypatch.setenv("SAGE_CACHE_TTL", "1")

    assert project.run() == {"one", "two", "sum", "both"}
    monkeypatch.setenv("SAGE_CACHE_TTL", "soon")
    with pytest.raises(sage.UsageError, match="SAGE_CACHE_TTL"):
        project.run()


def test_what_writes_is_run_unless_its_template_says_otherwise(project):
    write = "def run():\n    open('out.txt', 'w').write('1')\n    return 1\n"
    project.write("out.txt", "0")
    project.one(write, policy={"write": ["out.txt"]})
    assert (project.run("write:out.txt"), project.run("write:out.txt")) == ({"p"}, {"p"})

    project.one(write, policy={"write": ["out.txt"]}, cache=True)
    project.write("out.txt", "0")
    assert project.run("write:out.txt") == {"p"}  # it changed what it sees
    assert project.run("write:out.txt") == {"p"}  # it wrote the same again: this is kept
    assert project.run("write:out.txt") == set()
    project.write("out.txt", "0")
    assert project.run("write:out.txt") == {"p"}
    assert (project.path / "out.txt").read_text() == "1"


def test_files_that_are_left_and_secrets_that_are_said_are_not_kept(project, monkeypatch):
    project.one("import os\ndef run():\n    open(os.environ['SAGE_OUT'] + '/a', 'w').write('1')\n    return 1\n")
    assert (project.run(), project.run()) == ({"p"}, {"p"})

    monkeypatch.setenv("OPENAI_API_KEY", "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789")
    project.one("def run():\n    return 'sk-proj-abcdefghijklmnopqrstuvwxyz' + '0123456789'\n")
    assert (project.run(), project.run()) == ({"p"}, {"p"})


def test_what_has_become_a_secret_since_is_taken_out_of_what_was_kept(project, monkeypatch):
    value = "quite-an-ordinary-word-until-now"
    project.one(f"def run():\n    return '{value}'\n")
    assert project.run() == {"p"}

    monkeypatch.setenv("OPENAI_API_KEY", value)

    assert project.run() == set()
    assert value not in json.dumps(document(project.result))


def test_a_rejected_operation_runs_again(project):
    project.one("def run():\n    raise ValueError\n")
    for _ in range(2):
        result = sage.run(project.path / "t.json", "f", project=project.path, restart=True)
        assert "error" == result.outcome("p", "op-1").reason
        assert result.outcome("p", "op-1").cached_s is None
    assert project.entries() == []


def test_what_was_planted_changed_or_swapped_runs_again(project):
    project.run()
    first, second, *_ = entries = project.entries()
    whole = {path: path.read_bytes() for path in entries}

    for path in entries:
        path.write_bytes(whole[first][:-3])
    assert project.run() == {"one", "two", "sum", "both"}
    shutil.copy(first, second)
    assert len(project.run()) == 1
    for path in entries:
        path.unlink()
        path.symlink_to("/etc/hostname")
    assert project.run() == {"one", "two", "sum", "both"}


def test_another_key_runs_everything(project, monkeypatch):
    project.run()
    monkeypatch.setenv("SAGE_STATE_KEY", "ab" * 32)

    assert project.run() == {"one", "two", "sum", "both"}


def test_a_resume_is_answered_too(project):
    project.run()
    result = sage.resume("f", project=project.path, from_phase="one")

    assert result.ok
    assert result.metrics.cached == result.metrics.cache_asked == 3


def test_a_cache_that_cannot_be_had_stops_nothing_and_is_said_once(project):
    (project.path / ".sage").mkdir()
    (project.path / ".sage/cache").write_text("in its place")
    from sage_sandbox.api import How, prepare

    prepared = prepare(project.path / "t.json", "f", How(project.path, (sage.Grant("read", "."),)))
    result = prepared.runner.run()

    assert result.ok
    assert 1 == sum("there is no cache" in notice for notice in prepared.notices)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_stops_nothing_and_is_said_once(project):
    project.run()
    folder = project.path / ".sage/cache"
    folder.chmod(0o500)
    said: list[Any] = []
    project.write("one.txt", "1 2 3 4 5 6")
    try:
        assert project.run(observers=[said.append]) == {"one", "sum", "both"}
    finally:
        folder.chmod(0o700)

    assert 1 == sum("cannot be written" in getattr(event, "text", "") for event in said)


def test_packages_are_a_part_of_what_is_seen(project):
    project.one("import click\ndef run():\n    return click.__name__\n", packages=["click"])

    assert (project.run(), project.run()) == ({"p"}, set())
