"""`list`: every run of a project, whatever became of it."""

from __future__ import annotations

import json
import os
from contextlib import suppress

import pytest
from saved_runs import THREE, be_terminated, fail

from sage_sandbox.cli.main import main
from sage_sandbox.errors import ExitCode


@pytest.fixture
def of_every_kind(world, killed_at, capsys):
    """One run for each way to end, and one whose process was killed."""
    world.main("run", "t.yaml", "completed")
    world.acts["b/y"] = fail
    world.main("run", "t.yaml", "paused")
    world.acts = {"c/op-1": fail}
    world.main("run", "t.yaml", "failed")
    world.acts = {"a/op-1": be_terminated}
    world.main("run", "t.yaml", "cancelled")
    world.acts = {}
    with killed_at("c"):
        world.main("run", "t.yaml", "killed")
    capsys.readouterr()
    return world


def listed(capsys, *options):
    """The features that `list` shows, and how each stands."""
    assert main(["list", *options]) == ExitCode.DONE
    return [tuple(line.split("  ")[:3]) for line in capsys.readouterr().out.splitlines()]


def test_every_run_is_shown_with_status_and_progress(of_every_kind, capsys):
    assert [
        ("cancelled", "cancelled", "0/3 (0 %)"),
        ("completed", "completed", "3/3 (100 %)"),
        ("failed", "failed", "2/3 (66 %)"),
        ("killed", "paused (interrupted)", "2/3 (66 %)"),
        ("paused", "paused", "1/3 (33 %)"),
    ] == listed(capsys)


@pytest.mark.parametrize(
    ("status", "features"),
    [
        ("running", []),
        ("paused", ["killed", "paused"]),
        ("completed", ["completed"]),
        ("failed", ["failed"]),
        ("cancelled", ["cancelled"]),
    ],
)
def test_the_filter_shows_one_status_only(of_every_kind, capsys, status, features):
    assert features == [feature for feature, *_ in listed(capsys, "--filter", status)]


def test_json_has_the_fields_of_the_specification(of_every_kind, capsys):
    main(["list", "--json", "--filter", "failed"])

    ((run,),) = json.loads(capsys.readouterr().out).values()
    assert ("failed", "Steps", "c", "failed", 66) == tuple(
        run[name] for name in ("feature", "template", "phase", "status", "progress")
    )
    assert run["startedAt"].endswith("Z")


def test_a_running_one_says_itself_where_it_is(world, capsys):
    seen = []

    def look(_job, _cancel_fd):
        main(["list"])
        seen.append(capsys.readouterr().out)
        return fail(_job, _cancel_fd)

    world.acts["c/op-1"] = look
    world.run()

    (line,) = seen
    assert ["f", "running", "2/3 (66 %)", "b"] == line.split("  ")[:4]


def test_damaged_runs_do_not_hide_the_others(of_every_kind, capsys):
    for name in ("workflow-paused.json", "workflow-paused.json.bak"):
        of_every_kind.spoil(name)
    of_every_kind.spoil("workflow-paused", "_definition.1.json")
    of_every_kind.state("workflow-failed.json").unlink()
    os.mkfifo(of_every_kind.state("workflow-failed.json"))

    shown = dict(line[:2] for line in listed(capsys))

    assert ["cancelled", "completed", "failed", "killed", "paused"] == list(shown)
    assert ["paused"] == [name for name, status in shown.items() if status.startswith("unreadable: ")]
    main(["list", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert ["paused"] == [run["feature"] for run in document["workflows"] if run["status"] == "unreadable"]
    assert ["failed", "paused"] == [run["feature"] for run in document["workflows"] if "trouble" in run]


def test_what_may_not_be_read_does_not_hide_the_others(of_every_kind, capsys):
    if not os.geteuid():
        pytest.skip("root may read everything")
    of_every_kind.state("workflow-paused.json").chmod(0)
    of_every_kind.state("workflow-paused.json.bak").chmod(0)

    assert 5 == len(listed(capsys))


def test_names_of_templates_reach_the_terminal_escaped(world, capsys):
    world.write(THREE, name="evil\u202e\x1b[2J")
    world.run()
    capsys.readouterr()

    main(["list"])

    assert "evil\\u202e\\x1b[2J" in capsys.readouterr().out


def test_where_nothing_ran_that_is_said_and_nothing_is_made(world, capsys):
    assert [] == listed(capsys)
    main(["list", "--filter", "paused"])
    main(["list", "--json"])

    out, err = capsys.readouterr()
    assert ({"workflows": []}, "no runs here that are paused\n") == (json.loads(out), err)
    assert [world.project / "t.yaml"] == list(world.project.iterdir())


def test_runs_that_were_saved_elsewhere_are_shown_as_such(world, tmp_path, monkeypatch, capsys):
    world.run()
    with suppress(FileNotFoundError):
        world.project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    capsys.readouterr()

    main(["list"])

    assert "was not made here by this user" in capsys.readouterr().out
    assert main(["status", "f"]) == ExitCode.STATE_CORRUPTED
    assert "state rekey" in capsys.readouterr().err
    assert main(["state", "rekey"]) == ExitCode.DONE
    assert main(["status", "f"]) == ExitCode.DONE
