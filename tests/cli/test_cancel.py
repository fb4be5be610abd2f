"""`cancel`: a run that listens is ended; where none does, what is known of it is said."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from sage_sandbox import history
from sage_sandbox.cli.main import main
from sage_sandbox.control import asking
from sage_sandbox.control.server import Server
from sage_sandbox.disk import places
from sage_sandbox.disk.places import project_place
from sage_sandbox.history import Standing

AT = "2030-01-02T03:04:05.678Z"
ANEW = "phases that were cut short start anew, those that were done stay, with: sage-sandbox resume f"


class Run:
    """A run that ends, in the way it is told to, as soon as it is cancelled."""

    def __init__(self):
        self.cancelled = []
        self.end = {"status": "cancelled", "cancelledAt": AT, "checkpointSaved": True}
        self.server = None

    def cancel(self, save):
        self.cancelled.append(save)
        threading.Thread(target=self.server.finish, args=(self.end,)).start()  # type: ignore[union-attr]

    def status(self):
        raise AssertionError


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """The working directory, and a runtime folder of the test's own."""
    monkeypatch.setattr(places, "RUN_USER", tmp_path / "nowhere")
    monkeypatch.setattr(places, "TEMPORARY", tmp_path / "nowhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def run(project):
    made = Run()
    place = project_place(project)
    place.folder.close()
    made.server = Server.open(place.id, "f", handler=made)
    yield made
    made.server.close()


@pytest.fixture
def known(monkeypatch):
    """Make it look as if the state of the feature said so."""

    def say(status):
        monkeypatch.setattr(history.History, "of", lambda _, feature: Standing(feature, status))

    return say


@pytest.mark.parametrize(
    ("options", "saved", "code", "said"),
    [
        ([], True, 0, f"✓ f cancelled at {AT}; progress saved, resume it with: sage-sandbox resume f\n"),
        (
            ["--no-save"],
            False,
            0,
            f"✓ f cancelled at {AT}; {ANEW}\n",
        ),
        ([], False, 1, f"⚠ f cancelled at {AT}; what was cut short could not be saved, phases that were done stay\n"),
    ],
)
def test_a_run_is_ended_and_it_is_said_when_and_what_is_kept(run, capsys, options, saved, code, said):
    run.end["checkpointSaved"] = saved

    assert code == main(["cancel", "f", *options])
    assert (said, "") == capsys.readouterr()
    assert [not options] == run.cancelled


def test_a_run_that_was_quicker_is_said_to_have_ended(run, capsys):
    run.end["status"] = "completed"

    assert main(["cancel", "f"]) == 0
    assert "✓ f had ended before it could be cancelled: completed\n" == capsys.readouterr().out


def test_what_the_process_says_is_fit_for_a_terminal(run, capsys):
    run.end["cancelledAt"] = "\x1b[2J" + "x" * 99

    assert main(["cancel", "f"]) == 0
    out = capsys.readouterr().out
    assert ("\x1b" not in out, "…" in out) == (True, True)


@pytest.mark.parametrize(
    ("status", "saved", "document"),
    [
        ("cancelled", True, {"success": True, "cancelledAt": AT, "checkpointSaved": True, "status": "cancelled"}),
        ("cancelled", False, {"success": False, "cancelledAt": AT, "checkpointSaved": False, "status": "cancelled"}),
        ("completed", True, {"success": True, "cancelledAt": None, "checkpointSaved": True, "status": "completed"}),
    ],
)
def test_json_has_the_fields_of_the_specification(run, capsys, status, saved, document):
    run.end |= {"status": status, "checkpointSaved": saved}

    assert (not document["success"]) == main(["cancel", "f", "--json"])
    assert {"feature": "f", **document} == json.loads(capsys.readouterr().out)


def test_a_feature_that_never_ran_is_not_known(project, capsys):
    assert main(["cancel", "f"]) == 10
    assert "✗ there is no run of f in this project" in capsys.readouterr().err
    assert [] == list(project.iterdir())


def test_a_refusal_is_a_document_too(capsys):
    assert main(["cancel", "f", "--json"]) == 10
    document = json.loads(capsys.readouterr().out)
    assert (False, "f", None, False) == tuple(
        document[name] for name in ("success", "feature", "cancelledAt", "checkpointSaved")
    )
    assert "there is no run of f in this project" == document["errors"][0]["message"]


@pytest.mark.parametrize("status", ["paused", "completed", "failed", "cancelled"])
def test_a_run_that_does_not_run_says_how_it_stands(known, capsys, status):
    known(status)

    assert main(["cancel", "f"]) == 1
    err = capsys.readouterr().err
    assert f"✗ f is not running (its status is {status})\nhint: sage-sandbox status f\n" == err


def test_a_run_that_does_not_listen_is_said_to_run(known, capsys):
    known("running")

    assert main(["cancel", "f"]) == 1
    assert "✗ f is running, but cannot be asked" in capsys.readouterr().err


def test_a_run_that_does_not_answer_is_said_to_be_stopped(run, capsys, monkeypatch):
    run.cancel = run.cancelled.append
    monkeypatch.setattr(asking, "ask", lambda *args, timeout_s, ask=asking.ask, **kw: ask(*args, timeout_s=0.1, **kw))

    assert main(["cancel", "f"]) == 1
    assert "✗ the process that runs f does not answer\nhint: if it was stopped" in capsys.readouterr().err


@pytest.mark.parametrize("feature", ["../f", "F", "", "x" * 65])
def test_a_name_that_is_none_is_refused_before_anything_is_looked_at(own_home, capsys, feature):
    assert main(["cancel", feature]) == 2
    assert "is not a feature name" in capsys.readouterr().err
    assert [] == list(Path(own_home).iterdir())
