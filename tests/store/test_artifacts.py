"""How artifacts come into place, and what is done about a project that put something else there."""

from __future__ import annotations

import hashlib

import pytest

from sage_sandbox.errors import StateCorrupted, StateUnwritable
from sage_sandbox.outcome import Artifact, Outcome
from sage_sandbox.store import artifacts
from sage_sandbox.store.artifacts import keep, publish, settle

NOTHING = ("quiet", Outcome("fulfilled"))


def left(data, name="made"):
    """An operation that left a file, and whose checkpoint names it."""
    return name, Outcome("fulfilled", artifacts=(Artifact("file", len(data), hashlib.sha256(data).hexdigest()),))


@pytest.fixture
def phase(tmp_path):
    """Where the artifacts of a phase are; what an operation left lies there and is not in place."""
    folder = tmp_path / ".sage" / "artifacts" / "f" / "p"
    pending = folder / "made.tmp"
    pending.mkdir(parents=True)
    for path in (tmp_path / ".sage", *folder.relative_to(tmp_path).parents, folder, pending):
        (tmp_path / path).chmod(0o700)
    (pending / "file").write_bytes(b"one")
    (pending / "file").chmod(0o600)
    return folder


def held(phase):
    return {path.name: (path / "file").read_bytes() for path in phase.iterdir()}


def test_what_was_left_takes_the_place_of_what_an_earlier_run_left(tmp_path, phase):
    (phase / "made").mkdir()
    (phase / "made" / "file").write_bytes(b"older")
    keep(tmp_path, "f", "p", [left(b"one"), NOTHING])
    publish(tmp_path, "f", "p", [left(b"one"), NOTHING])

    assert {"made": b"one"} == held(phase)


def test_what_an_earlier_process_put_into_place_stays(tmp_path, phase):
    (phase / "made.tmp").rename(phase / "made")
    publish(tmp_path, "f", "p", [left(b"one")])

    assert {"made": b"one"} == held(phase)


def test_what_somebody_took_away_since_is_not_missed(tmp_path):
    publish(tmp_path, "f", "p", [left(b"one")])
    publish(tmp_path, "f", "p", [NOTHING])
    settle(tmp_path, "f", {"p": [left(b"one")]})

    assert [] == list(tmp_path.iterdir())


def test_a_resume_finishes_the_move_of_what_was_committed(tmp_path, phase):
    settle(tmp_path, "f", {"p": [left(b"one")]})

    assert {"made": b"one"} == held(phase)


@pytest.mark.parametrize(
    "committed", [{}, {"p": [NOTHING]}, {"p": [("made", Outcome("fulfilled"))]}, {"p": [left(b"two")]}]
)
def test_a_resume_removes_what_was_not_committed(tmp_path, phase, committed):
    settle(tmp_path, "f", committed)

    assert {} == held(phase)


def test_a_resume_removes_what_is_no_folder(tmp_path, phase):
    (phase / "link.tmp").symlink_to(tmp_path)
    (phase / "plain.tmp").write_bytes(b"")
    settle(tmp_path, "f", {"p": [left(b"one"), left(b"one", "link"), left(b"one", "plain")]})

    assert {"made": b"one"} == held(phase)
    assert tmp_path.exists()


def test_a_link_in_the_way_is_not_followed(tmp_path, phase):
    outside = tmp_path / "outside"
    phase.rename(outside)
    phase.symlink_to(outside)

    for act in (keep, publish):
        with pytest.raises(StateCorrupted):
            act(tmp_path, "f", "p", [left(b"one")])
    settle(tmp_path, "f", {"p": [left(b"one")]})
    assert ["made.tmp"] == [path.name for path in outside.iterdir()]


@pytest.mark.parametrize("act", [keep, publish])
def test_a_disk_that_refuses_is_said(tmp_path, phase, act, monkeypatch):
    def refuse(*_, **__):
        raise OSError(5, "Input/output error")

    for name in ("fsync", "rename"):
        monkeypatch.setattr(f"os.{name}", refuse)

    with pytest.raises(StateUnwritable, match="input/output error"):
        act(tmp_path, "f", "p", [left(b"one")])


def test_a_folder_that_cannot_be_opened_is_said(tmp_path, phase, monkeypatch):
    def refuse(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(artifacts, "sage_folder", refuse)

    with pytest.raises(StateUnwritable, match="too many open files"):
        publish(tmp_path, "f", "p", [left(b"one")])
