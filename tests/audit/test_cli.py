"""`audit verify` and `audit show`: what they print, and how they end."""

from __future__ import annotations

import json
import os

import pytest
from commands import run_cli

from sage_sandbox.audit.log import AuditLog, open_audit
from sage_sandbox.disk.places import project_place
from sage_sandbox.store.opening import open_keys


@pytest.fixture
def project(tmp_path):
    path = tmp_path / "project"
    path.mkdir()
    return path


@pytest.fixture
def write(project):
    def write(*entries, fallback=False):
        place = project_place(project)
        with place.folder:
            key = open_keys(os.environ, place).audit_key(place.id)
            if fallback:
                with place.folder.below("audit-log", make=True) as heads:
                    opened = AuditLog.open(place.folder.below("audit-log"), heads, key)
            else:
                opened, _ = open_audit(project, place, key)
            for feature, text in entries:
                opened.write("state", text, feature=feature, durable=True)
            opened.close()

    return write


@pytest.fixture
def path(project):
    return project / ".sage/logs/audit.jsonl"


def test_a_whole_log_is_said_to_be_one(project, write):
    write(("f", "a"), ("g", "b"))
    done = run_cli("audit", "verify", cwd=project)

    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith("✓ 2 entries, from 20")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: [lines[0], lines[1].replace(b'"b"', b'"x"'), lines[2]], "✗ line 2 was changed"),
        (lambda lines: [lines[0], lines[2]], "✗ line 2 is entry 3: 1 before it are missing"),
        (lambda lines: lines[:2], "✗ 1 entries are missing at the end"),
        (lambda lines: lines[1:], "✗ line 1 is entry 2: 1 before it are missing"),
    ],
)
def test_damage_is_named(project, write, path, damage, said):
    write(("f", "a"), ("f", "b"), ("f", "c"))
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    done = run_cli("audit", "verify", cwd=project)

    assert 13 == done.returncode
    assert said in done.stdout
    assert "✓" not in done.stdout


def test_a_torn_line_is_no_damage(project, write, path):
    write(("f", "a"))
    with path.open("ab") as file:
        file.write(b'{"seq":2')
    done = run_cli("audit", "verify", cwd=project)

    assert 0 == done.returncode
    assert done.stdout.startswith("⚠ the last line was not finished; the next entry heals it\n✓ 1 entries")


@pytest.mark.parametrize("removed", ["the file", "the folder"])
def test_a_log_that_is_gone_is_damage(project, write, path, removed):
    write(("f", "a"))
    path.unlink()
    if removed == "the folder":
        (path.parent / "audit.lock").unlink()
        path.parent.rmdir()
    done = run_cli("audit", "verify", cwd=project)

    assert (13, "✗ the log is gone: it had 1 entries\n") == (done.returncode, done.stdout)


def test_another_key_is_said_to_be_one(project, write):
    write(("f", "a"))
    done = run_cli("audit", "verify", cwd=project, env={"SAGE_STATE_KEY": "00" * 32})

    assert 13 == done.returncode
    assert "✗ none of the 1 lines was written with this key" in done.stdout


def test_an_empty_log_has_no_times(project, write):
    write()

    assert "✓ 0 entries\n" == run_cli("audit", "verify", cwd=project).stdout


def test_there_may_be_none(project):
    verified, shown = run_cli("audit", "verify", cwd=project), run_cli("audit", "show", cwd=project)

    assert (10, 0) == (verified.returncode, shown.returncode)
    assert "there is no audit log here" in verified.stderr
    assert ("", "there is no audit log here\n") == (shown.stdout, shown.stderr)


def test_a_project_that_never_logged_has_none(project):
    project_place(project).folder.close()

    assert 10 == run_cli("audit", "verify", cwd=project).returncode


def test_entries_are_shown_a_line_each_and_cannot_act_on_the_terminal(project, write):
    write(("f", "a\x1b[31m\nb"), ("", "c"))
    lines = run_cli("audit", "show", cwd=project).stdout.splitlines()

    assert ["f  state  a\\x1b[31m\\x0ab", "-  state  c"] == [line.partition("  ")[2] for line in lines]


def test_some_entries_can_be_asked_for(project, write):
    write(("f", "a"), ("g", "b"), ("f", "c"), ("f", "d"))
    done = run_cli("audit", "show", "--feature", "f", "--last", "2", "--json", cwd=project)

    assert ["c", "d"] == [entry["text"] for entry in json.loads(done.stdout)["entries"]]


def test_the_log_with_the_user_is_looked_at_too(project, write):
    write(("f", "a"))
    write(("f", "b"), fallback=True)
    verified, shown = run_cli("audit", "verify", cwd=project), run_cli("audit", "show", cwd=project)

    assert 0 == verified.returncode
    assert ["✓ 1 entries, from", "✓ 1 entries in /"] == [line[:17] for line in verified.stdout.splitlines()][:1] + [
        line[:16] for line in verified.stdout.splitlines()
    ][1:]
    assert ["a", "b"] == [line.split()[-1] for line in shown.stdout.splitlines()]
