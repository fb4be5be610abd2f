from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.disk.files import Folder, Untrusted, sage_folder
from sage_sandbox.events import (
    Event,
    Notice,
    OperationSettled,
    OperationStarted,
    PhaseSettled,
    PhaseStarted,
    RunSettled,
    RunStarted,
    Weight,
)
from sage_sandbox.observe import log as module
from sage_sandbox.observe.listeners import Listeners
from sage_sandbox.observe.log import FILE, KEPT, LINE_MOST, LOCK, Entry, Log, parse, read_log, rendered, stamp
from sage_sandbox.outcome import Outcome, Violation, rejected

NOW = datetime(2026, 1, 31, 10, 0, 0, 123456, UTC)
ENDED = RunSettled("id", "f", "completed", 2.0)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / ".sage" / "logs"


@pytest.fixture
def folder(logs: Path) -> Iterator[Folder]:
    with sage_folder(logs.parents[1], "logs", make=True) as folder:
        yield folder


@pytest.fixture
def make(folder: Folder) -> Iterator[Callable[..., Log]]:
    made: list[Log] = []

    def make(feature: str = "f", *, now: datetime = NOW, **options: Any) -> Log:
        made.append(Log(Folder.open(folder.path), feature, "id", now=lambda: now, **options))
        return made[-1]

    yield make
    for log in made:
        log.close()


def line(message: str, *, feature: str = "f", time: datetime = NOW) -> bytes:
    entry = {"time": stamp(time), "level": "INFO", "message": message, "context": {"feature": feature}}
    return json.dumps(entry).encode() + b"\n"


def messages(folder: Folder, feature: str = "f", **options: Any) -> list[str]:
    return [entry.message for entry in read_log(folder, feature, **options)]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestWhatIsTold:
    @pytest.mark.parametrize(
        ("event", "level", "message", "about"),
        [
            (RunStarted("id", "f", "w", 2, 3), "INFO", "run started: w", {"phases": 2, "operations": 3, "kept": 0}),
            (RunStarted("id", "f", "w", 2, 3, 1), "INFO", "run resumed: w", {"phases": 2, "operations": 3, "kept": 1}),
            (PhaseStarted("a", "A", 2), "INFO", "phase started", {"phase": "a", "operations": 2}),
            (
                OperationStarted("a", "x", 2),
                "WARN",
                "operation started again (attempt 2)",
                {"phase": "a", "operation": "x", "attempt": 2},
            ),
            (
                OperationSettled("a", "x", Outcome("fulfilled", duration_s=0.12)),
                "INFO",
                "operation fulfilled (120 ms)",
                {"phase": "a", "operation": "x", "durationMs": 120.0},
            ),
            (
                OperationSettled("a", "x", Outcome("fulfilled", scrubbed=2, violations=(Violation("connect"),))),
                "WARN",
                "operation fulfilled (0 ms); 2 secrets in what it left were replaced",
                {"phase": "a", "operation": "x", "durationMs": 0.0, "scrubbed": 2, "violations": 1},
            ),
            (
                OperationSettled("a", "x", rejected("limit", "memory limit exceeded", "allow more")),
                "ERROR",
                "operation rejected, limit: memory limit exceeded",
                {"phase": "a", "operation": "x", "durationMs": 0.0, "hint": "allow more"},
            ),
            (
                OperationSettled("a", "x", rejected("cancelled", "cancelled")),
                "WARN",
                "operation rejected, cancelled: cancelled",
                {"phase": "a", "operation": "x", "durationMs": 0.0},
            ),
            *(
                (
                    PhaseSettled("a", "A", status, 1, 2, 1.5),  # type: ignore[arg-type]
                    level,
                    f"phase {status}: 1 of 2 fulfilled (1.5 sec)",
                    {"phase": "a", "status": status, "fulfilled": 1, "total": 2, "durationMs": 1500.0},
                )
                for status, level in [
                    ("completed", "INFO"),
                    ("degraded", "WARN"),
                    ("blocked", "WARN"),
                    ("cancelled", "WARN"),
                    ("failed", "ERROR"),
                    ("timeout", "ERROR"),
                ]
            ),
            *(
                (
                    RunSettled("id", "f", status, 2.0, resumable=True),  # type: ignore[arg-type]
                    level,
                    f"run {status} (2 sec)",
                    {"status": status, "durationMs": 2000.0, "resumable": True},
                )
                for status, level in [
                    ("completed", "INFO"),
                    ("paused", "WARN"),
                    ("cancelled", "WARN"),
                    ("failed", "ERROR"),
                ]
            ),
            (
                RunSettled("id", "f", "completed", 2.0, weight=Weight(1000, 100)),
                "INFO",
                "run completed (2 sec)",
                {
                    "status": "completed",
                    "durationMs": 2000.0,
                    "resumable": False,
                    "bytesProduced": 1000,
                    "bytesHandedBack": 100,
                },
            ),
            (
                OperationSettled("a", "x", rejected("error", "no alice@example.org", "ask bob@example.org")),
                "ERROR",
                "operation rejected, error: no [email]",
                {"phase": "a", "operation": "x", "durationMs": 0.0, "hint": "ask [email]"},
            ),
            (Notice("info", "mail alice@example.org"), "INFO", "mail [email]", {}),
            (Notice("info", "all well"), "INFO", "all well", {}),
            (Notice("warning", "less parallel"), "WARN", "less parallel", {}),
            (Notice("error", "no room"), "ERROR", "no room", {}),
        ],
    )
    def test_an_event_is_one_line(
        self, make: Callable[..., Log], logs: Path, event: Event, level: str, message: str, about: dict[str, Any]
    ) -> None:
        make()(event)
        written = (logs / FILE).read_text()

        assert written.endswith("}\n")
        assert {
            "time": "2026-01-31T10:00:00.123Z",
            "level": level,
            "message": message,
            "context": {"feature": "f", "run": "id", **about},
        } == json.loads(written)

    def test_a_first_attempt_is_no_news(self, make: Callable[..., Log], logs: Path) -> None:
        make()(OperationStarted("a", "x", 1))

        assert "" == (logs / FILE).read_text()

    def test_what_an_operation_returned_or_printed_is_not_in_it(self, make: Callable[..., Log], logs: Path) -> None:
        make()(OperationSettled("a", "x", Outcome("fulfilled", result=b'"mine"', stdout=b"mine", stderr=b"mine")))

        assert "mine" not in (logs / FILE).read_text()

    def test_long_texts_are_cut_and_none_does_anything_to_a_terminal(
        self, make: Callable[..., Log], logs: Path
    ) -> None:
        make()(OperationSettled("a", "x", rejected("error", "\x9b\u202e\ud800" + "x" * 9999, "é" * 9999)))
        written = (logs / FILE).read_bytes()
        entry = json.loads(written)

        assert written.isascii()
        assert [500, 500] == [len(entry["message"]), len(entry["context"]["hint"])]
        assert "…" == entry["message"][-1]


class TestWriting:
    def test_the_file_is_the_users_alone(self, make: Callable[..., Log], logs: Path) -> None:
        make()

        assert [0o600, 0o600] == [(logs / name).stat().st_mode & 0o777 for name in (FILE, LOCK)]

    def test_runs_that_go_on_together_write_whole_lines(self, make: Callable[..., Log], folder: Folder) -> None:
        both = [make("one"), make("other")]

        def run(log: Log) -> None:
            for number in range(200):
                log(Notice("info", f"{number}"))

        threads = [threading.Thread(target=run, args=(log,)) for log in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

        assert [[str(number) for number in range(200)]] * 2 == [messages(folder, name) for name in ("one", "other")]
        assert 400 == len((Path(folder.path) / FILE).read_bytes().splitlines())

    def test_it_lets_go_of_the_file_after_the_last_event(self, make: Callable[..., Log]) -> None:
        before = open_files()
        log = make()
        log(ENDED)

        assert before == open_files()
        with pytest.raises(OSError, match="Bad file descriptor"):
            log(Notice("info", "too late"))

    def test_it_lets_go_of_the_file_when_nobody_has_it_any_more(self, folder: Folder) -> None:
        before = open_files()
        Log(Folder.open(folder.path), "f", "id")

        assert before == open_files()

    def test_a_torn_line_of_another_does_not_swallow_the_next(
        self, make: Callable[..., Log], logs: Path, folder: Folder
    ) -> None:
        (logs / FILE).touch(0o600)
        (logs / FILE).write_bytes(line("whole") + line("torn")[:-9])
        log = make()
        log(Notice("info", "next"))
        log(Notice("info", "last"))

        assert ["whole", "next", "last"] == messages(folder)

    def test_a_full_disk_raises_and_what_follows_is_whole(
        self, make: Callable[..., Log], folder: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log, write = make(), os.write
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
            with pytest.raises(OSError, match="No space left") as full:
                log(Notice("info", "cut off"))
        log(Notice("info", "there is room again"))

        assert errno.ENOSPC == full.value.errno
        assert ["there is room again"] == messages(folder)

    def test_a_run_goes_on_without_a_log_that_fails(
        self, make: Callable[..., Log], capsys: pytest.CaptureFixture[str]
    ) -> None:
        log = make()
        log.close()
        Listeners([log])(Notice("info", "said"))

        assert "an observer failed and was dropped: OSError" in capsys.readouterr().err

    @pytest.mark.parametrize("name", [FILE, LOCK])
    def test_something_else_in_its_place_is_not_written_to(
        self, make: Callable[..., Log], logs: Path, folder: Folder, name: str
    ) -> None:
        (logs / "target").touch()
        (logs / name).symlink_to("target")
        before = open_files()

        with pytest.raises(Untrusted, match="is a symbolic link"):
            make()
        assert b"" == (logs / "target").read_bytes()
        assert before == open_files()


class TestDropping:
    def fill(self, logs: Path, *ages: float) -> None:
        (logs / FILE).touch(0o600)
        (logs / FILE).write_bytes(b"".join(line(f"{age}", time=NOW - timedelta(days=age)) for age in ages))

    def test_what_is_older_than_30_days_is_dropped_at_a_start(
        self, make: Callable[..., Log], logs: Path, folder: Folder
    ) -> None:
        self.fill(logs, 40, 31, 29, 35, 1)
        make()(Notice("info", "now"))

        assert timedelta(days=30) == KEPT
        assert ["29", "35", "1", "now"] == messages(folder)

    def test_all_of_it_may_be_old(self, make: Callable[..., Log], logs: Path, folder: Folder) -> None:
        self.fill(logs, 40, 31)
        make()

        assert b"" == (logs / FILE).read_bytes()

    def test_a_log_that_begins_later_is_left_as_it_is(self, make: Callable[..., Log], logs: Path) -> None:
        self.fill(logs, 29, 40)
        before = (logs / FILE).stat().st_ino
        make()

        assert before == (logs / FILE).stat().st_ino

    @pytest.mark.parametrize(
        "beginning", [b"garbage\n\n", b"x" * 3 * LINE_MOST + b"\n", b""], ids=["short", "long", "none"]
    )
    def test_a_beginning_that_is_no_entry_says_nothing_about_age(
        self, make: Callable[..., Log], logs: Path, beginning: bytes
    ) -> None:
        self.fill(logs, 40)
        (logs / FILE).write_bytes(beginning + (logs / FILE).read_bytes())
        make()

        assert (b"" if len(beginning) < LINE_MOST else beginning) == (logs / FILE).read_bytes()[: len(beginning)]

    def test_what_has_no_entry_is_left_as_it_is(self, make: Callable[..., Log], logs: Path) -> None:
        self.fill(logs)
        (logs / FILE).write_bytes(b"garbage\n")
        make()

        assert b"garbage\n" == (logs / FILE).read_bytes()

    def test_nothing_is_dropped_while_another_run_writes(
        self, make: Callable[..., Log], logs: Path, folder: Folder
    ) -> None:
        other = make("other")
        self.fill(logs, 40)
        make()
        assert ["40"] == messages(folder)
        other.close()
        make().close()
        make()(Notice("info", "now"))

        assert ["40", "now"] == messages(folder)

    def test_of_a_log_that_somebody_filled_the_end_is_kept(
        self, make: Callable[..., Log], logs: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.fill(logs, 40, *[1] * 20)
        monkeypatch.setattr(module, "KEPT_BYTES", 5 * len(line("1")) + 3)
        make()

        assert ["1"] * 5 == messages(folder)

    def test_what_a_killed_run_left_is_swept(self, make: Callable[..., Log], logs: Path, folder: Folder) -> None:
        for name in (f"{FILE}.0123abcd.tmp", "audit.jsonl.0123abcd.tmp"):
            (logs / name).touch()
        make()

        assert {FILE, LOCK, "audit.jsonl.0123abcd.tmp"} == {path.name for path in logs.iterdir()}

    def test_a_run_that_is_stopped_while_it_drops_lines_is_not_waited_for_long(
        self, make: Callable[..., Log], logs: Path, folder: Folder
    ) -> None:
        slept: list[float] = []
        (logs / LOCK).touch(0o600)
        with (logs / LOCK).open("rb+") as stopped:
            fcntl.flock(stopped, fcntl.LOCK_EX)
            make(sleep=slept.append)(Notice("info", "still said"))

        assert module.WAIT_S <= sum(slept) < module.WAIT_S + 0.1
        assert ["still said"] == messages(folder)


class TestReading:
    def test_only_the_lines_of_the_feature_are_given(self, make: Callable[..., Log], folder: Folder) -> None:
        for feature in ("f", "ff", "f"):
            make(feature)(Notice("info", f"of {feature}"))
        make("g")(Notice("info", "f"))

        assert ["of f", "of f"] == messages(folder)

    def test_no_log_is_an_empty_one(self, folder: Folder) -> None:
        assert [] == messages(folder)

    def test_garbage_is_passed_over(self, logs: Path, folder: Folder) -> None:
        nested = b"[" * 50_000 + b'"f"\n'
        (logs / FILE).touch(0o600)
        (logs / FILE).write_bytes(
            b"\xff\xfe f\n\n"
            + line("one")
            + b'["f"]\n{"f": 1}\n'
            + line("cut")[:20]
            + b"\n"
            + b'{"time": 1, "level": "INFO", "message": "f", "context": {"feature": "f"}}\n'
            + b'{"time": "t", "level": "INFO", "message": "f", "context": "f"}\n'
            + nested
            + line("two")
            + b"f" * 3 * LINE_MOST
            + b"\n"
            + line("three")
            + line("torn")[:-1]
        )

        assert ["one", "two", "three"] == messages(folder)

    @given(st.binary())
    def test_any_line_is_an_entry_or_none(self, data: bytes) -> None:
        assert parse(data) is None

    def test_something_else_in_its_place_is_not_read(self, logs: Path, folder: Folder) -> None:
        os.mkfifo(logs / FILE)

        with pytest.raises(Untrusted, match="is not a regular file"):
            messages(folder)

    def test_the_file_is_closed_when_nobody_reads_on(self, make: Callable[..., Log], folder: Folder) -> None:
        log = make()
        log(Notice("info", "one"))
        before = open_files()
        reading = read_log(folder, "f")
        next(reading)
        assert before + 1 == open_files()
        reading.close()  # type: ignore[attr-defined]

        assert before == open_files()


class TestFollowing:
    """What happens between two looks is done by ``more``, which decides whether there is another."""

    def follow(self, folder: Folder, *acts: Callable[[], object]) -> list[str]:
        left = list(acts)

        def more() -> bool:
            if left:
                left.pop(0)()
                return True
            return False

        return messages(folder, more=more)

    def test_what_is_added_is_given_once(self, make: Callable[..., Log], folder: Folder) -> None:
        log = make()
        says = [lambda text=text: log(Notice("info", text)) for text in ("two", "three")]
        log(Notice("info", "one"))

        assert ["one", "two", "three"] == self.follow(folder, *says, lambda: None)

    def test_a_log_that_is_made_meanwhile_is_found(self, make: Callable[..., Log], folder: Folder) -> None:
        assert ["one"] == self.follow(folder, lambda: None, lambda: make()(Notice("info", "one")))

    def test_a_line_that_is_being_written_is_given_when_it_is_whole(self, logs: Path, folder: Folder) -> None:
        def add(data: bytes) -> None:
            with (logs / FILE).open("ab") as file:
                file.write(data)

        (logs / FILE).touch(0o600)
        whole = line("one")

        assert ["one"] == self.follow(folder, lambda: add(whole[:10]), lambda: add(whole[10:]))

    def test_a_log_that_loses_its_old_lines_is_read_on(
        self, make: Callable[..., Log], logs: Path, folder: Folder
    ) -> None:
        def restart() -> None:
            make(now=NOW + timedelta(days=2))(Notice("info", "after"))

        (logs / FILE).touch(0o600)
        (logs / FILE).write_bytes(line("old", time=NOW - timedelta(days=29)) + line("new") + line("newer"))

        assert ["old", "new", "newer", "after"] == self.follow(folder, restart, lambda: None)
        assert ["new", "newer", "after"] == messages(folder)

    def test_a_log_that_is_begun_anew_is_read_from_its_beginning(self, logs: Path, folder: Folder) -> None:
        def replace(text: str) -> None:
            folder.write_new(FILE, line(text))

        def truncate() -> None:
            (logs / FILE).write_bytes(b"")

        (logs / FILE).touch(0o600)
        (logs / FILE).write_bytes(line("one") + line("two"))

        assert ["one", "two", "three", "four"] == self.follow(
            folder, lambda: replace("three"), truncate, lambda: replace("four")
        )

    def test_a_log_that_is_taken_away_is_waited_for(self, logs: Path, folder: Folder) -> None:
        (logs / FILE).touch(0o600)
        (logs / FILE).write_bytes(line("one"))

        assert ["one", "two"] == self.follow(
            folder, (logs / FILE).unlink, lambda: None, lambda: folder.write_new(FILE, line("two"))
        )


class TestRendered:
    def test_an_entry_is_one_line(self) -> None:
        context = {"feature": "f", "phase": "a", "operation": "x", "hint": "try less"}

        assert "2026-01-31T10:00:00.123Z ERROR a/x: no · hint: try less" == rendered(
            Entry("2026-01-31T10:00:00.123Z", "ERROR", "no", context)
        )
        assert "t WARN  said" == rendered(Entry("t", "WARN", "said", {}))
        assert "t INFO  a: said" == rendered(Entry("t", "INFO", "said", {"phase": "a"}))

    def test_what_others_wrote_is_escaped_and_cut(self) -> None:
        text = rendered(Entry("\x1b[2J", "\n", "\u202e" + "x" * 9999, {"phase": ["\x9b"], "hint": {"\r": 1}}))

        assert text.startswith("\\x1b[2J \\x0a")
        assert "\\u202e" in text
        assert 1000 == len(text)
        assert text.isprintable()
