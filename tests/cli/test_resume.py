"""`resume`: what is done is kept, what is not runs again, and both are said. The last tests use real sandboxes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from commands import cli_argv, run_cli
from saved_runs import THREE, be_terminated, fail, hang

import sage_sandbox as sage
from sage_sandbox.errors import ExitCode, SandboxUnavailable

KEY, OTHER_KEY = "11" * 32, "22" * 32


def said(capsys):
    """What was printed on stderr so far, by lines."""
    return capsys.readouterr().err.splitlines()


# -- after whatever ended it -------------------------------------------------------------------------------------------


def test_a_failed_phase_and_what_follows_run_again_and_nothing_else(world, capsys):
    world.acts["c/op-1"] = fail
    assert world.run() == ExitCode.FAILED
    world.acts.clear()
    capsys.readouterr()

    assert world.resume() == ExitCode.DONE

    assert ["c/op-1"] == world.ran
    assert [
        "✓ 2 of 3 phases are kept (a, b)",
        "▸ c runs: failed: 1 of 1 again (op-1)",
    ] == said(capsys)[:2]


def test_of_a_paused_phase_only_rejected_operations_run_again(world, capsys):
    world.acts["b/y"] = fail
    assert world.run() == ExitCode.PAUSED
    world.acts.clear()

    assert world.resume("--json") == ExitCode.DONE

    assert ["b/y", "c/op-1"] == world.ran
    assert "▸ b runs: failed: 1 of 2 again (y)" in said(capsys)


def test_dependents_get_what_earlier_processes_left(world):
    world.acts["b/y"] = fail
    world.run()
    world.acts.clear()

    world.resume()

    assert {"b": {"x": {"a": {}}, "y": {"a": {}}}} == json.loads(world.jobs[-1].inputs)


def test_a_cancelled_run_goes_on_with_what_was_cut_short(world):
    world.acts["b/y"] = be_terminated
    assert world.run("--sequential") == ExitCode.CANCELLED
    assert ["a/op-1", "b/x", "b/y"] == world.ran
    world.acts.clear()

    assert world.resume() == ExitCode.DONE

    assert ["b/y", "c/op-1"] == world.ran


@pytest.mark.parametrize(("fields", "option"), [({"timeout": 300}, ()), ({}, ("--timeout", "300ms"))])
def test_a_run_whose_time_was_over_goes_on_with_what_was_cut_short(world, fields, option):
    world.write({**THREE, "b": {**THREE["b"], "fields": fields}})
    world.acts["b/y"] = hang
    assert world.run(*option) == ExitCode.TIMEOUT
    world.acts.clear()

    assert world.resume() == ExitCode.DONE

    assert ["b/y", "c/op-1"] == world.ran


def test_the_phase_in_flight_at_a_crash_runs_again_whole(world, killed_at, capsys):
    with killed_at("b"):
        world.run()
    capsys.readouterr()

    assert world.resume() == ExitCode.DONE

    assert ["b/x", "b/y", "c/op-1"] == sorted(world.ran)
    assert [
        "✓ 1 of 3 phases are kept (a)",
        "▸ b runs: it did not end before",
        "▸ c runs: it did not end before",
    ] == said(capsys)[:3]


def test_a_run_is_resumed_as_often_as_it_takes(world, killed_at):
    world.acts["b/y"] = fail
    assert world.run() == ExitCode.PAUSED
    assert world.resume() == ExitCode.PAUSED
    assert ["b/y"] == world.ran
    world.acts.clear()
    with killed_at("c"):
        world.resume()
    assert ["b/y", "c/op-1"] == world.ran

    assert world.resume() == ExitCode.DONE
    assert ["c/op-1"] == world.ran


def test_a_run_that_this_machine_would_not_confine_goes_on_when_it_does(world, capsys):
    def refuse(_job, _cancel_fd):
        raise SandboxUnavailable("no user namespaces", "run doctor", "userns")

    world.acts["b/x"] = refuse
    assert world.run() == ExitCode.SANDBOX_UNAVAILABLE
    world.acts.clear()
    capsys.readouterr()
    assert world.main("status", "f") == ExitCode.DONE
    assert {"f: failed", "✗ no user namespaces"} <= set(capsys.readouterr().out.splitlines())

    assert world.resume() == ExitCode.DONE
    assert "a/op-1" not in world.ran


def test_a_completed_run_has_nothing_to_resume(world, capsys):
    world.run("--json")
    first, before = json.loads(capsys.readouterr().out), world.tree()

    assert world.resume("--json") == ExitCode.DONE

    out, err = capsys.readouterr()
    document = json.loads(out)
    assert ([], before) == (world.ran, world.tree())
    assert ["✓ 3 of 3 phases are kept (a, b, c)", "✓ every phase is done: nothing runs again"] == err.splitlines()[:2]
    assert (True, first["workflowId"]) == (document["success"], document["workflowId"])
    assert [True] * 3 == [phase["restored"] for phase in document["results"]["phases"]]


def test_the_library_resumes(world):
    world.acts["c/op-1"] = fail
    world.run()
    world.acts.clear()

    result = sage.resume("f")

    assert (True, 2, {"b": {"x": {"a": {}}, "y": {"a": {}}}}) == (
        result.ok,
        result.metrics.restored,
        result.outcome("c", "op-1").value(),
    )


@pytest.mark.parametrize("feature", ["f", "nothing"])
def test_what_never_ran_is_no_such_run_and_leaves_nothing(world, capsys, feature):
    if feature != "f":
        world.run()
    before = sorted(world.project.rglob("*"))
    capsys.readouterr()

    assert world.main("resume", feature) == ExitCode.NO_SUCH_RUN

    assert f"✗ there is no run of {feature} in this project" == said(capsys)[0]
    assert before == sorted(world.project.rglob("*"))


@pytest.mark.parametrize("feature", ["../up", "Up", "a/b"])
def test_a_feature_that_is_no_name_is_refused(world, capsys, feature):
    assert world.main("resume", feature) == ExitCode.USAGE

    assert "feature name" in said(capsys)[0]


# -- --from ------------------------------------------------------------------------------------------------------------


def test_from_runs_a_phase_and_what_follows_from_it_again(world, capsys):
    world.write({**THREE, "d": {"needs": ["a"]}})
    world.run()
    capsys.readouterr()

    assert world.resume("--from", "b") == ExitCode.DONE

    assert ["b/x", "b/y", "c/op-1"] == sorted(world.ran)
    assert [
        "✓ 2 of 4 phases are kept (a, d)",
        "▸ b runs: as you asked",
        "▸ c runs: it follows from what runs again",
    ] == said(capsys)[:3]


def test_what_was_set_aside_stays_so_after_a_crash(world, killed_at):
    world.acts["b/y"] = fail
    world.run()
    world.acts.clear()
    world.resume()
    with killed_at("a"):
        world.resume("--from", "a")

    assert world.resume() == ExitCode.DONE

    assert ["a/op-1", "b/x", "b/y", "c/op-1"] == sorted(world.ran)


def test_from_a_phase_that_is_not_there_names_those_that_are(world, capsys):
    world.run()
    before = world.tree()
    capsys.readouterr()

    assert world.resume("--from", "z") == ExitCode.USAGE

    assert ["✗ there is no phase 'z' in Steps", "hint: its phases are a, b, c"] == said(capsys)
    assert ([], before) == (world.ran, world.tree())


# -- --update ----------------------------------------------------------------------------------------------------------


def test_a_changed_template_is_said_and_the_stored_one_goes_on(world, capsys):
    world.acts["c/op-1"] = fail
    world.run()
    world.acts.clear()
    world.write({"a": {"note": "new"}, **{name: THREE[name] for name in "bc"}, "d": {}})
    capsys.readouterr()

    assert world.resume() == ExitCode.DONE

    assert ["c/op-1"] == world.ran
    changed = f"{world.project / 't.yaml'} changed since; going on with what was stored (--update takes the new one)"
    assert f"⚠ {changed}" == said(capsys)[0]


def test_a_run_goes_on_without_its_template(world):
    world.acts["c/op-1"] = fail
    world.run()
    world.acts.clear()
    (world.project / "t.yaml").unlink()

    assert world.resume() == ExitCode.DONE

    assert ["c/op-1"] == world.ran


def test_update_runs_changed_and_new_phases_and_what_follows_from_them(world, capsys):
    before = {"a": {}, "b": {"needs": ["a"]}, "c": {"needs": ["b"]}, "d": {"needs": ["a"]}, "e": {}}
    world.write(before)
    world.run()
    del before["e"]
    world.write({**before, "b": {"needs": ["a"], "note": "new"}, "f": {"needs": ["d"]}}, name="Renamed")
    capsys.readouterr()

    assert world.resume("--update") == ExitCode.DONE

    assert ["b/op-1", "c/op-1", "f/op-1"] == sorted(world.ran)
    assert [
        "✓ 2 of 5 phases are kept (a, d)",
        "▸ e is dropped: it is not in the template any more",
        "▸ b runs: its definition changed",
        "▸ c runs: it follows from what runs again",
        "▸ f runs: it is new",
    ] == said(capsys)[:5]
    world.main("status", "f", "--json")
    status = json.loads(capsys.readouterr().out)
    assert ("completed", "Renamed", 5) == (status["status"], status["template"], status["progress"]["total"])


def test_what_was_updated_stays_so_after_a_crash(world, killed_at):
    world.acts["b/y"] = fail
    world.run()
    world.acts.clear()
    world.write({**THREE, "b": {**THREE["b"], "note": "new"}})
    with killed_at("b"):
        world.resume("--update")

    assert world.resume() == ExitCode.DONE

    assert ["b/x", "b/y", "c/op-1"] == sorted(world.ran)
    assert all("'new'" in job.code for job in world.jobs if "# b/" in job.code)


def test_a_phase_that_comes_back_runs_again(world):
    world.run()
    world.write({"a": {}})
    world.resume("--update")
    world.write(THREE)

    assert world.resume("--update") == ExitCode.DONE

    assert ["b/x", "b/y", "c/op-1"] == sorted(world.ran)


def test_update_takes_new_defaults_and_keeps_what_was_given(world, capsys):
    def parameters(**defaults):
        return {name: {"type": "integer", "default": value} for name, value in defaults.items()}

    phases = {
        "a": {"op_fields": {"params": "${params.given}"}},
        "b": {"op_fields": {"params": {"deep": ["${params.default}"]}}},
        "c": {"op_fields": {"params": "${params}"}},
        "d": {},
    }
    world.write(phases, parameters=parameters(given=1, default=1))
    world.run("--param", "given=5")
    world.write(phases, parameters=parameters(given=2, default=2))
    capsys.readouterr()

    assert world.resume("--update") == ExitCode.DONE

    assert {"b/op-1": {"deep": [2]}, "c/op-1": {"given": 5, "default": 2}} == {
        name: json.loads(job.params) for name, job in zip(world.ran, world.jobs, strict=True)
    }
    assert "▸ b runs: parameter default changed" in said(capsys)


def test_an_updated_template_that_is_wrong_changes_nothing(world, capsys):
    world.run()
    before = world.tree()
    world.write({"a": {"needs": ["a"]}})

    assert world.resume("--update") == ExitCode.USAGE

    assert before == world.tree()


# -- what holds for it -------------------------------------------------------------------------------------------------

ASKING = {"a": {}, "b": {"needs": ["a"], "op_fields": {"policy": {"read": ["src"]}}}}


def test_what_was_granted_holds_without_being_typed_again(world):
    (world.project / "src").mkdir()
    world.write(ASKING)
    world.acts["b/op-1"] = fail
    world.run("--allow", "read:src")
    world.acts.clear()

    assert world.resume() == ExitCode.DONE

    assert (os.path.realpath(world.project / "src"),) == world.jobs[-1].policy.read


def test_an_updated_template_that_asks_for_more_is_not_granted(world, capsys):
    for name in ("src", "secrets"):
        (world.project / name).mkdir()
    world.write(ASKING)
    world.acts["b/op-1"] = fail
    world.run("--allow", "read:src")
    before = world.tree()
    world.acts.clear()
    world.write({**ASKING, "c": {"op_fields": {"policy": {"read": ["secrets"]}}}})
    capsys.readouterr()

    assert world.resume("--update") == ExitCode.NOT_GRANTED

    err = "\n".join(said(capsys))
    assert "--allow read:secrets" in err
    assert "read:src" not in err
    assert ([], before) == (world.ran, world.tree())
    assert world.resume("--update", "--allow", "read:secrets") == ExitCode.DONE


def test_parameters_limits_and_time_hold_for_a_resume(world):
    world.write(
        {"a": {"op_fields": {"params": "${params.top}"}}}, parameters={"top": {"type": "integer", "default": 1}}
    )
    world.acts["a/op-1"] = hang
    assert world.run("--param", "top=7", "--limit", "memory=32M", "--timeout", "200ms") == ExitCode.TIMEOUT
    assert world.resume() == ExitCode.TIMEOUT
    world.acts.clear()

    assert world.resume("--timeout", "1m") == ExitCode.DONE

    assert (b"7", 32 << 20) == (world.jobs[0].params, world.jobs[0].limits.memory)


def test_a_run_with_a_secret_in_its_parameters_is_not_gone_on_with(world, monkeypatch, capsys):
    monkeypatch.setenv("DEPLOY_TOKEN", "correct horse battery")
    world.write({"a": {}}, parameters={"who": {"type": "string", "default": ""}})
    world.acts["a/op-1"] = fail
    world.run("--param", "who=correct horse battery")
    assert (
        "⚠ a secret stands in the template or in a parameter: it is not saved, so this run cannot be resumed"
        in said(capsys)
    )

    assert world.resume() == ExitCode.USAGE

    assert "a secret stood in the template or in a parameter" in said(capsys)[0]
    assert world.run("--restart") == ExitCode.FAILED


# -- damage and keys ---------------------------------------------------------------------------------------------------


def test_a_damaged_main_file_is_restored_from_its_backup_and_that_is_said(world, capsys):
    world.acts["c/op-1"] = fail
    world.run()
    world.acts.clear()
    world.spoil("workflow-f.json")
    capsys.readouterr()

    assert world.resume() == ExitCode.DONE

    assert ["c/op-1"] == world.ran
    assert "⚠ Workflow state corrupted, restoring from backup · ✓ restored to phase 2 of 3" == said(capsys)[0]
    assert [] != list(world.state("aside").rglob("workflow-f.json"))


def test_main_file_and_backup_damaged_are_made_anew_from_the_checkpoints(world, capsys):
    world.acts["c/op-1"] = fail
    world.run()
    world.acts.clear()
    for name in ("workflow-f.json", "workflow-f.json.bak"):
        world.spoil(name)
    capsys.readouterr()

    assert world.resume() == ExitCode.DONE

    assert ["c/op-1"] == world.ran
    assert "restoring from the checkpoints · ✓ restored to phase 2 of 3" in said(capsys)[0]


def test_the_phase_of_a_damaged_checkpoint_runs_again_and_that_is_said(world, capsys):
    world.run()
    world.spoil("workflow-f", "a.1.json")
    capsys.readouterr()

    assert world.resume() == ExitCode.DONE

    lines = said(capsys)
    assert ["a/op-1"] == world.ran
    assert lines[0].endswith("it is kept in .sage/state/aside, a runs again")
    assert "▸ a runs: its checkpoint was damaged" in lines
    assert [] != list(world.state("aside").rglob("a.1.json"))


@pytest.mark.parametrize("verb", [("resume", "f"), ("run", "t.yaml", "f"), ("status", "f"), ("state", "verify")])
def test_the_wrong_key_says_what_to_do_and_touches_nothing(world, monkeypatch, capsys, verb):
    monkeypatch.setenv("SAGE_STATE_KEY", KEY)
    world.acts["c/op-1"] = fail
    world.run()
    before = world.tree()
    monkeypatch.setenv("SAGE_STATE_KEY", OTHER_KEY)
    capsys.readouterr()

    assert world.main(*verb) == ExitCode.WRONG_KEY

    out, err = capsys.readouterr()
    assert "is not here" in out + err
    assert ([], before) == (world.ran, world.tree())


# --- real sandboxes

COUNTING = """
name: Steps
phases:
- id: a
  name: A
  operations: {type: python, params: a, code: CODE, policy: {write_through: [counts]}}
- id: b
  name: B
  dependencies: [a]
  operations:
  - {id: x, type: python, params: x, code: CODE, policy: {write_through: [counts]}}
  - {id: y, type: python, params: y, code: CODE, policy: {write_through: [counts]}}
- id: c
  name: C
  dependencies: [b]
  operations: {type: python, params: c, code: CODE, policy: {write_through: [counts]}}
"""
CODE = """
import os, time
def run(params):
    with open(f"counts/{params}", "a") as file:
        file.write("x")
    if params == "y" and os.path.exists("counts/hold"):
        time.sleep(600)
    return dict(os.environ)
"""


@pytest.fixture
def counting(tmp_path):
    """A project in which each operation adds to a file of its own."""
    project = tmp_path / "project"
    (project / "counts").mkdir(parents=True)
    (project / "t.yaml").write_text(COUNTING.replace("CODE", json.dumps(CODE)))
    return project


def counts(project):
    return {path.name: len(path.read_text()) for path in (project / "counts").iterdir() if path.name != "hold"}


@contextmanager
def held_in_phase_two(project, env):
    """A run whose operation b/y has had its effect and does not end."""
    (project / "counts" / "hold").touch()
    argv = cli_argv("run", "t.yaml", "f", "--allow", "write-through:counts")
    with subprocess.Popen(
        argv,
        cwd=project,
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        heard = []
        for line in process.stderr:
            heard.append(line)
            if line.startswith("✓ b/x"):
                break
        try:
            assert process.poll() is None, heard
            _wait_until((project / "counts" / "y").exists)
            yield process
        finally:
            process.kill()
    (project / "counts" / "hold").unlink()


def _wait_until(claim, patience_s=20.0):
    deadline = time.monotonic() + patience_s
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _environments(process):
    """What can be seen of the environment of every process of a run."""
    found = {}
    for one in psutil.Process(process.pid).children(recursive=True):
        try:
            found[one.pid] = Path(f"/proc/{one.pid}/environ").read_text(errors="replace")
        except OSError:
            found[one.pid] = ""  # it does not let its own user look
    return found


def test_after_kill_9_in_phase_two_nothing_that_was_committed_is_repeated(counting):
    env = {"SAGE_STATE_KEY": KEY, "SAGE_STATE_PASSPHRASE": "not used here"}
    with held_in_phase_two(counting, env) as process:
        seen = _environments(process)
        process.kill()
        assert "" == process.stderr.read()  # nor a warning of what it left to be cleaned up

    assert {"a": 1, "x": 1, "y": 1} == counts(counting)
    assert len(seen) >= 3
    assert not any(KEY in text or "not used here" in text for text in seen.values())
    listed = run_cli("list", cwd=counting, env=env)
    assert listed.stdout.startswith("f  paused (interrupted)  1/3 (33 %)  ")
    refused = run_cli("run", "t.yaml", "f", cwd=counting, env=env)
    assert (2, "✗ f was interrupted: 1 of 3 phases are done") == (refused.returncode, refused.stderr.splitlines()[0])

    done = run_cli("resume", "f", "--json", cwd=counting, env=env)

    assert 0 == done.returncode, done.stderr
    assert {"a": 1, "x": 2, "y": 2, "c": 1} == counts(counting)
    assert [
        "✓ 1 of 3 phases are kept (a)",
        "▸ b runs: it did not end before",
        "▸ c runs: it did not end before",
    ] == done.stderr.splitlines()[:3]
    assert KEY not in done.stdout
    assert "SAGE_IDEMPOTENCY_KEY" in done.stdout


def test_after_sigterm_only_what_was_cut_short_is_repeated(counting):
    with held_in_phase_two(counting, {}) as process:
        process.send_signal(signal.SIGTERM)
        _out, err = process.communicate(timeout=10)

    assert 130 == process.returncode, err
    assert "✗ b cancelled · ✓ 1 result of 2 kept" in err
    done = run_cli("resume", "f", cwd=counting)

    assert 0 == done.returncode, done.stderr
    assert {"a": 1, "x": 1, "y": 2, "c": 1} == counts(counting)
    assert "▸ b runs: cancelled: 1 of 2 again (y)" in done.stderr
