"""A run gets a log: the project's, or one with the user where the project cannot be written."""

from __future__ import annotations

import errno
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sage_sandbox.audit import checking
from sage_sandbox.audit.log import open_audit, retention
from sage_sandbox.disk.files import Folder, Untrusted
from sage_sandbox.disk.places import project_place
from sage_sandbox.errors import SageError, StateUnwritable, UsageError

KEY = bytes(range(32))


@pytest.fixture
def project(tmp_path):
    path = tmp_path / "project"
    path.mkdir()
    return path


@pytest.fixture
def user(project):
    found = project_place(project)
    yield found
    found.folder.close()


@pytest.fixture
def config(own_home):
    path = own_home / ".config" / "sage-sandbox"
    path.mkdir(parents=True, mode=0o700)
    path.chmod(0o700)
    return path


def settle(config, text):
    (config / "config.toml").write_text(text)
    (config / "config.toml").chmod(0o600)


def refusing(monkeypatch, *where):
    real = Folder.open_file

    def refuse(folder, name, flags, mode=0o600):
        if name == "audit.jsonl" and folder.path.endswith(where):
            raise OSError(errno.EROFS, "read-only")
        return real(folder, name, flags, mode)

    monkeypatch.setattr(Folder, "open_file", refuse)


def test_the_log_is_in_the_project(project, user):
    opened, notice = open_audit(project, user, KEY)
    opened.write("start", "a")
    opened.close()

    assert "" == notice
    assert 1 == len((project / ".sage/logs/audit.jsonl").read_bytes().splitlines())


def test_a_project_that_cannot_be_written_has_its_log_with_the_user(project, user, monkeypatch):
    refusing(monkeypatch, "logs")
    opened, notice = open_audit(project, user, KEY)
    opened.write("start", "a", durable=True)
    opened.close()

    with user.folder.below("audit-log") as folder:
        assert notice.endswith(f"it goes to {folder.path}")
        assert ["a"] == [entry.text for entry in checking.entries(folder)]
        assert () == checking.verify(folder, folder, KEY).problems


def test_no_place_at_all_is_an_error(project, user, monkeypatch):
    refusing(monkeypatch, "logs", "audit-log")

    with pytest.raises(StateUnwritable, match="cannot be written"):
        open_audit(project, user, KEY)


def test_a_link_in_its_place_is_refused(project, user):
    (project / ".sage").mkdir(mode=0o700)
    (project / ".sage/logs").mkdir(mode=0o700)
    (project / ".sage/logs/audit.jsonl").symlink_to(project / "else")

    with pytest.raises(Untrusted, match="is a symbolic link"):
        open_audit(project, user, KEY)


def test_old_entries_are_dropped_at_a_start(project, user):
    opened, _ = open_audit(project, user, KEY, now=lambda: datetime(2020, 1, 1, tzinfo=UTC))
    opened.write("start", "a")
    opened.close()
    opened, _ = open_audit(project, user, KEY)
    opened.close()

    with Folder.open(project / ".sage/logs") as folder:
        assert ["pruned"] == [entry.kind for entry in checking.entries(folder)]


def test_a_disk_too_full_to_prune_does_not_stop_a_run(project, user, monkeypatch):
    opened, _ = open_audit(project, user, KEY, now=lambda: datetime(2020, 1, 1, tzinfo=UTC))
    opened.write("start", "a")
    opened.close()

    def full(folder, name, data):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Folder, "write_new", full)
    opened, notice = open_audit(project, user, KEY)
    opened.write("start", "b")
    opened.close()

    assert "" == notice
    with Folder.open(project / ".sage/logs") as folder:
        assert ["a", "b"] == [entry.text for entry in checking.entries(folder)]


def test_entries_are_kept_for_a_month_unless_the_user_says_otherwise(config):
    missing = retention(Path(config.parent, "nothing"))
    settle(config, "")
    unsaid = retention(config)
    settle(config, 'audit_retention = "7d"')
    days = retention(config)
    settle(config, 'audit_retention = "12h"')

    assert (timedelta(days=30), timedelta(days=30), timedelta(days=7), timedelta(hours=12)) == (
        missing,
        unsaid,
        days,
        retention(config),
    )


@pytest.mark.parametrize("text", ["audit_retention", 'audit_retention = "long"', 'audit_retention = "xd"'])
def test_a_setting_that_cannot_be_meant_is_refused(project, user, config, text):
    settle(config, text)

    with pytest.raises(UsageError, match=r"config\.toml"):
        open_audit(project, user, KEY)
    assert not (project / ".sage").exists()


def test_a_damaged_head_closes_what_was_opened(project, user):
    user.folder.write_new("audit", b"x" * 512)
    with pytest.raises(SageError, match="audit is damaged"):
        open_audit(project, user, KEY)
