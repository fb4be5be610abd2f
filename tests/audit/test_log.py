"""The audit log: what it holds, what it notices, and what it survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import PACKAGE_FOLDER

from sage_sandbox.audit import checking
from sage_sandbox.audit.checking import Verdict, verify
from sage_sandbox.audit.log import AuditLog, open_audit, retention
from sage_sandbox.disk.files import Folder, sage_folder
from sage_sandbox.disk.locking import acquire
from sage_sandbox.disk.places import ProjectPlace, project_place
from sage_sandbox.errors import StateUnwritable, UsageError

KEY = b"k" * 32


class Bench(NamedTuple):
    project: Path
    place: ProjectPlace

    @property
    def file(self) -> Path:
        return self.project / ".sage" / "logs" / "audit.jsonl"

    def open(self, *, key: bytes = KEY, now: datetime | None = None) -> AuditLog:
        clock = now or datetime.now(UTC)
        log, notice = open_audit(self.project, self.place, key, now=lambda: clock)
        assert notice == ""
        return log

    def verdict(self, key: bytes = KEY) -> Verdict:
        with sage_folder(self.project, "logs") as folder:
            return verify(folder, self.place.folder, key)

    def texts(self) -> list[str]:
        with sage_folder(self.project, "logs") as folder:
            return [entry.text for entry in checking.entries(folder)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    project = tmp_path / "project"
    project.mkdir()
    return Bench(project, project_place(project))


def wrote(bench: Bench, *texts: str, now: datetime | None = None, durable: bool = True) -> None:
    log = bench.open(now=now)
    for text in texts:
        log.write("state", text, run="r", feature="f", data={"n": 1}, durable=durable)
    log.close()
    log.close()


def test_what_was_written_is_there_in_order_and_verifies(bench: Bench) -> None:
    wrote(bench, "one", "two")
    wrote(bench, "three", durable=False)

    assert (3, (), False) == (bench.verdict().entries, bench.verdict().problems, bench.verdict().torn)
    assert ["one", "two", "three"] == bench.texts()


def test_a_change_of_any_byte_is_noticed(bench: Bench) -> None:
    wrote(bench, "one", "two")
    data = bench.file.read_bytes()
    for place in range(len(data)):
        bench.file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])

        assert bench.verdict().problems or bench.verdict().torn, place


@pytest.mark.parametrize("without", [0, 1, 2])
def test_a_line_that_was_taken_out_is_noticed(bench: Bench, without: int) -> None:
    wrote(bench, "one", "two", "three")
    lines = bench.file.read_bytes().splitlines(keepends=True)
    bench.file.write_bytes(b"".join(line for number, line in enumerate(lines) if number != without))

    assert bench.verdict().problems


def test_lines_that_changed_places_or_came_twice_are_noticed(bench: Bench) -> None:
    wrote(bench, "one", "two", "three")
    one, two, three = bench.file.read_bytes().splitlines(keepends=True)
    bench.file.write_bytes(one + three + two)
    swapped = bench.verdict()
    bench.file.write_bytes(one + two + two + three)

    assert swapped.problems
    assert bench.verdict().problems


def test_another_key_verifies_nothing(bench: Bench) -> None:
    wrote(bench, "one")

    assert bench.verdict(b"x" * 32).problems


def test_a_line_that_was_torn_anywhere_is_healed_and_that_is_said(bench: Bench) -> None:
    wrote(bench, "one", durable=True)
    whole = bench.file.read_bytes()
    wrote(bench, "two", durable=False)
    longer = bench.file.read_bytes()
    for end in range(len(whole) + 1, len(longer)):
        bench.file.write_bytes(longer[:end])
        torn = bench.verdict()
        wrote(bench, "three", durable=False)

        assert torn.torn
        assert bench.texts()[0] == "one"
        assert bench.texts()[2] == "three"
        assert bench.texts()[1].endswith("of a line that was not finished were cut off")
        assert () == bench.verdict().problems


def test_a_log_that_was_cut_short_stays_so_whatever_is_written_next(bench: Bench) -> None:
    wrote(bench, "one", "two", "three")
    bench.file.write_bytes(bench.file.read_bytes().splitlines(keepends=True)[0])
    cut = bench.verdict()
    wrote(bench, "four")

    assert ((0, "2 entries are missing at the end"),) == cut.problems
    assert bench.verdict().problems


def test_a_failed_write_leaves_no_half_line(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote(bench, "one")
    log = bench.open()
    before = bench.file.read_bytes()
    real = os.write
    calls = []

    def short(fd: int, data: bytes) -> int:
        calls.append(fd)
        if len(calls) == 1:
            return real(fd, bytes(data)[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", short)
        with pytest.raises(StateUnwritable, match="no space left on device"):
            log.write("state", "two")
    assert before == bench.file.read_bytes()
    log.write("state", "three")
    log.close()

    assert ["one", "three"] == bench.texts()


def test_what_only_reduces_does_not_wait_and_is_not_lost(bench: Bench) -> None:
    log = bench.open()
    with sage_folder(bench.project, "logs") as folder, acquire(folder, "audit.lock", wait_s=0):
        log.reduce("cancel", "cancelled")
        log.reduce("violation", "denied")
    assert [] == bench.texts()
    log.close()

    assert ["cancelled", "denied"] == bench.texts()
    assert () == bench.verdict().problems


def test_a_lock_that_is_kept_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sage_sandbox.audit.log.LOCK_WAIT_S", 0.0)
    log = bench.open()
    with sage_folder(bench.project, "logs") as folder, acquire(folder, "audit.lock", wait_s=0):  # noqa: SIM117
        with pytest.raises(StateUnwritable, match="another process"):
            log.write("state", "one")
    log.close()


def test_old_entries_go_and_the_chain_still_verifies(bench: Bench) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for day in range(5):
        wrote(bench, f"day {day}", now=start + timedelta(days=day))
    wrote(bench, "later", now=start + timedelta(days=33))
    kept = bench.texts()
    verdict = bench.verdict()
    wrote(bench, "same day", now=start + timedelta(days=33, hours=3))

    assert ["3 entries from before 2026-01-04 were dropped", "day 3", "day 4", "later"] == kept
    assert () == verdict.problems
    assert [*kept, "same day"] == bench.texts()
    assert () == bench.verdict().problems


def test_when_all_entries_are_old_the_chain_goes_on_from_the_last(bench: Bench) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    wrote(bench, "one", "two", now=start)
    wrote(bench, "three", now=start + timedelta(days=60))

    assert ["2 entries from before 2026-01-31 were dropped", "three"] == bench.texts()
    assert () == bench.verdict().problems


def test_a_writer_goes_on_in_the_log_that_another_pruned(bench: Bench) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    wrote(bench, "old", now=start)
    late = start + timedelta(days=60)
    log, _ = open_audit(bench.project, bench.place, KEY, now=lambda: start)
    wrote(bench, "new", now=late)
    log.write("state", "slow")
    log.close()

    assert ["1 entries from before 2026-01-31 were dropped", "new", "slow"] == bench.texts()
    assert () == bench.verdict().problems


def test_under_another_key_it_goes_on_and_the_old_log_is_kept(bench: Bench) -> None:
    wrote(bench, "one")
    log = bench.open()
    log.begin_anew(b"n" * 32, "before.jsonl", "a new key")
    log.write("state", "two", durable=True)
    log.close()

    assert () == bench.verdict(b"n" * 32).problems
    assert ["a new key; the entries before are in aside/before.jsonl", "two"] == bench.texts()
    assert b'"text":"one"' in (bench.file.parent / "aside" / "before.jsonl").read_bytes()


def test_a_large_log_is_not_read_at_a_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote(bench, *("x" * 4000 for _ in range(300)))
    read = []
    real = os.pread

    def counting(fd: int, most: int, at: int) -> bytes:
        data = real(fd, most, at)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counting)
    wrote(bench, "next")

    assert 1_200_000 < bench.file.stat().st_size
    assert 200_000 > sum(read)


def test_where_the_project_cannot_be_written_the_log_is_with_the_user_and_that_is_said(bench: Bench) -> None:
    bench.project.joinpath(".sage").mkdir()
    real = Folder.open_file

    def refuse(folder, name, flags, mode=0o600):
        if ".sage" in folder.path:
            raise OSError(30, "Read-only file system")
        return real(folder, name, flags, mode)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Folder, "open_file", refuse)
        log, notice = open_audit(bench.project, bench.place, KEY)
        log.write("start", "here", durable=True)
        log.close()

    assert "it goes to" in notice
    assert b'"here"' in Path(bench.place.folder.path, "audit-log", "audit.jsonl").read_bytes()


def test_where_nothing_can_be_written_the_act_does_not_happen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Folder, "open_file", refuse)
    with pytest.raises(StateUnwritable, match="read-only file system"):
        open_audit(bench.project, bench.place, KEY)


@pytest.mark.parametrize(("text", "days"), [('"30d"', 30), ('"12h"', 0.5), ('"7d"', 7)])
def test_the_user_says_how_long_entries_are_kept(tmp_path: Path, text: str, days: float) -> None:
    (tmp_path / "config.toml").write_text(f"audit_retention = {text}\n")

    assert timedelta(days=days) == retention(tmp_path)


@pytest.mark.parametrize("text", ['audit_retention = "soon"', "audit_retention = "])
def test_a_setting_that_cannot_be_meant_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(UsageError, match=r"audit_retention|is not TOML"):
        retention(tmp_path)


def test_without_a_setting_it_is_thirty_days(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("other = 1\n")

    assert timedelta(days=30) == retention(tmp_path) == retention(tmp_path / "missing")


WRITER = f"""
import sys; sys.path.insert(0, {PACKAGE_FOLDER!r})
from pathlib import Path
from sage_sandbox.audit.log import open_audit
from sage_sandbox.disk.places import project_place
project = Path(sys.argv[1])
log, _ = open_audit(project, project_place(project), b"k" * 32)
for number in range(20):
    log.write("state", f"{{sys.argv[2]}} {{number}}", durable=number % 5 == 0)
log.close()
"""


def test_many_processes_write_one_chain(bench: Bench) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-P", "-c", WRITER, str(bench.project), str(number)]) for number in range(12)
    ]
    codes = [writer.wait(60) for writer in writers]
    lines = [json.loads(line) for line in bench.file.read_bytes().splitlines()]

    assert [0] * 12 == codes
    assert list(range(1, 241)) == [line["seq"] for line in lines]
    assert () == bench.verdict().problems
