"""`status`: how one run stands, from beside it and afterwards."""

from __future__ import annotations

import json
import subprocess

import pytest
from commands import cli_argv, run_cli
from saved_runs import fail

from sage_sandbox.cli.main import main
from sage_sandbox.disk.files import sage_folder
from sage_sandbox.disk.locking import acquire
from sage_sandbox.errors import ExitCode
from sage_sandbox.store.layout import lock_name


def status(capsys, *options):
    """What `status f` prints."""
    assert main(["status", "f", *options]) == ExitCode.DONE
    return capsys.readouterr().out


def test_a_paused_run_says_how_far_it_came_why_it_paused_and_how_to_go_on(world, capsys):
    world.acts["b/y"] = fail
    world.run()
    capsys.readouterr()

    lines = status(capsys).splitlines()

    assert ["f: paused", "template: Steps", "progress: 1 of 3 phases (33 %)", "last phase: b"] == lines[:4]
    assert ["✗ b/y: it was told to", "✗ c: not started: b did not complete", "hint: sage-sandbox resume f"] == lines[
        -3:
    ]


def test_full_shows_every_phase(world, capsys):
    world.acts["b/y"] = fail
    world.run()
    capsys.readouterr()

    assert ["  a: completed", "  b: failed", "  c: pending"] == [
        line for line in status(capsys, "--full").splitlines() if line.startswith("  ")
    ]
    assert [{"id": "a", "status": "completed"}, {"id": "b", "status": "failed"}, {"id": "c", "status": "pending"}] == (
        json.loads(status(capsys, "--full", "--json"))["phases"]
    )


def test_json_has_the_fields_of_the_specification(world, capsys):
    world.acts["b/y"] = fail
    world.run()
    capsys.readouterr()

    document = json.loads(status(capsys, "--json"))

    assert ("f", "Steps", "b", "paused", False) == tuple(
        document[name] for name in ("feature", "template", "phase", "status", "interrupted")
    )
    assert {"completed": 1, "total": 3, "percentage": 33} == document["progress"]
    assert {"totalTime", "totalTokens", "contextReloads", "phaseCount"} <= document["metrics"].keys()
    assert [("b", "y"), ("c", "")] == [(error["phase"], error["operation"]) for error in document["errors"]]
    assert document["startedAt"] <= document["lastUpdatedAt"]


def test_times_add_up_over_the_processes_of_a_run(world, capsys):
    world.acts["c/op-1"] = fail
    world.run()
    first = json.loads(capsys.readouterr().out and status(capsys, "--json"))
    world.resume()
    capsys.readouterr()
    second = json.loads(status(capsys, "--json"))

    assert first["metrics"]["totalTime"] < second["metrics"]["totalTime"]
    assert first["startedAt"] == second["startedAt"]
    assert first["lastUpdatedAt"] < second["lastUpdatedAt"]


def test_a_killed_run_is_interrupted_and_its_checkpoints_are_counted(world, killed_at, capsys):
    with killed_at("c"):
        world.run()
    capsys.readouterr()

    lines = status(capsys).splitlines()

    assert ["f: paused (its process was killed)", "template: Steps", "progress: 2 of 3 phases (66 %)"] == lines[:3]


@pytest.mark.parametrize("options", [(), ("--full",)])
def test_a_running_one_is_asked(world, capsys, options):
    seen = []

    def look(job, cancel_fd):
        seen.append(json.loads(status(capsys, "--json", *options)))
        return fail(job, cancel_fd)

    world.acts["c/op-1"] = look
    world.run()

    (document,) = seen
    assert ("running", "b", {"completed": 2, "total": 3, "percentage": 66}) == tuple(
        document[name] for name in ("status", "phase", "progress")
    )
    if options:
        assert ["completed", "completed", "pending"] == [phase["status"] for phase in document["phases"]]


def test_one_that_does_not_listen_is_still_seen_to_run(world, killed_at, capsys):
    with killed_at("c"):
        world.run()
    capsys.readouterr()
    with sage_folder(world.project, "state") as folder, acquire(folder, lock_name("f"), wait_s=0):
        assert "f: running" == status(capsys).splitlines()[0]


def test_a_damaged_run_is_told_from_its_backup(world, capsys):
    world.acts["c/op-1"] = fail
    world.run()
    world.spoil("workflow-f.json")
    before = world.tree()
    capsys.readouterr()

    out = status(capsys)
    assert "progress: 2 of 3 phases (66 %)" in out
    assert f"⚠ {world.state('workflow-f.json')} " in out
    assert before == world.tree()


@pytest.mark.parametrize(("feature", "code"), [("nothing", ExitCode.NO_SUCH_RUN), ("../up", ExitCode.USAGE)])
def test_what_is_not_there_is_said(world, capsys, feature, code):
    world.run()

    assert main(["status", feature]) == code
    assert main(["status", feature, "--wait"]) == code


def test_foreign_text_reaches_the_terminal_escaped(world, capsys):
    world.acts["a/op-1"] = lambda job, fd: fail(job, fd).__class__("rejected", "error", "\x1b[2Jno\u202e")
    world.run()
    capsys.readouterr()

    assert "✗ a/op-1: \\x1b[2Jno\\u202e" in status(capsys)


# --- real processes

WAITING = """
name: Waiting
phases:
- id: a
  name: A
  operations:
    type: python
    policy: {write_through: [ended]}
    code: |
      import os, time
      def run():
          while not os.path.exists("ended/now"):
              time.sleep(0.01)
"""


def test_wait_returns_when_the_run_ends(tmp_path):
    project = tmp_path / "project"
    (project / "ended").mkdir(parents=True)
    (project / "t.yaml").write_text(WAITING)
    detached = run_cli("run", "t.yaml", "f", "--allow", "write-through:ended", "--detach", cwd=project)
    assert (0, "f\n") == (detached.returncode, detached.stdout), detached.stderr

    argv = cli_argv("status", "f", "--wait", "--json")
    with subprocess.Popen(argv, cwd=project, stdout=subprocess.PIPE) as waiting:
        try:
            running = json.loads(run_cli("status", "f", "--json", cwd=project).stdout)
            assert ("running", None) == (running["status"], waiting.poll())
        finally:
            (project / "ended" / "now").touch()
        out, _ = waiting.communicate(timeout=30)

    assert (0, "completed") == (waiting.returncode, json.loads(out)["status"])
