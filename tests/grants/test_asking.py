from __future__ import annotations

import io
import os
import pty
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.escaping import escape
from sage_sandbox.grants import asking
from sage_sandbox.grants.asking import Answer, Question, render, terminal_asker
from sage_sandbox.grants.memory import Change
from sage_sandbox.grants.review import Review, Row
from sage_sandbox.policy import Grant


def _row(
    kind: str, value: str, *, granted: bool = False, operation: str = "op-1", note: str = "", path: str = ""
) -> Row:
    return Row("survey", operation, Grant(kind, value), granted, note, path)  # type: ignore[arg-type]


QUESTION = Question("report", "report.yaml", Review(rows=(_row("read", "src", path="/p/src"),)))


class Terminal:
    """A real terminal of the test's own: what is shown on it, and a hand to type with."""

    def __init__(self) -> None:
        self.hand, self._end = pty.openpty()
        self.stdin: TextIO = os.fdopen(self._end, encoding="utf-8", closefd=False)
        self.stderr: TextIO = os.fdopen(self._end, "w", encoding="utf-8", closefd=False)

    def type(self, keys: bytes) -> None:
        os.write(self.hand, keys)

    def ask(self, keys: bytes, question: Question = QUESTION) -> tuple[Answer, str]:
        """Ask, and type once the question stands there."""
        shown = bytearray()

        def answer() -> None:
            while b"[n] " not in shown:
                shown.extend(os.read(self.hand, 4096))
            flushed.wait(10)
            self.type(keys)

        flushed = threading.Event()
        flush = termios.tcflush

        def flush_and_tell(descriptor: int, queue: int) -> None:
            flush(descriptor, queue)
            flushed.set()

        typist = threading.Thread(target=answer)
        asker = terminal_asker(self.stdin, self.stderr)
        assert asker is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(termios, "tcflush", flush_and_tell)
            typist.start()
            given_answer = asker(question)
            typist.join()
        return given_answer, shown.decode()

    def close(self) -> None:
        self.stdin.close()
        self.stderr.close()
        os.close(self.hand)
        os.close(self._end)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


class TestAnswers:
    @pytest.mark.parametrize("keys", [b"y\n", b"Y\n", b"yes\n", b"  y  \n"])
    def test_yes_is_for_this_run(self, terminal: Terminal, keys: bytes) -> None:
        assert terminal.ask(keys)[0] == "run"

    @pytest.mark.parametrize("keys", [b"r\n", b"remember\n", b"a\n", b"always\n", b"R\n"])
    def test_always_is_remembered(self, terminal: Terminal, keys: bytes) -> None:
        assert terminal.ask(keys)[0] == "remember"

    @pytest.mark.parametrize(
        "keys", [b"\n", b"n\n", b"no\n", b"yy\n", b"sure\n", "ÿ\n".encode(), b"\xff\n", b"\x04", b"y\x04\x04"]
    )
    def test_anything_else_is_a_no(self, terminal: Terminal, keys: bytes) -> None:
        assert terminal.ask(keys)[0] == "no"

    def test_always_is_a_no_where_nothing_can_be_remembered(self, terminal: Terminal) -> None:
        question = Question("report", "", QUESTION.review, forgetful="there is no home")

        answer, shown = terminal.ask(b"r\n", question)

        assert answer == "no"
        assert "r = always" not in shown

    def test_what_was_typed_before_the_question_is_discarded(self, terminal: Terminal) -> None:
        terminal.type(b"y\ny\ny\n")

        assert terminal.ask(b"n\n")[0] == "no"

    def test_keys_that_come_one_by_one_are_a_line(self, terminal: Terminal) -> None:
        tty.setraw(terminal.stdin.fileno())

        assert terminal.ask(b"y\n")[0] == "run"

    def test_a_line_without_end_is_a_no(self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(asking, "_LINE_MAX", 100)
        tty.setraw(terminal.stdin.fileno())

        assert terminal.ask(b"y" * 200)[0] == "no"

    def test_a_terminal_that_cannot_be_flushed_is_not_asked(self) -> None:
        with Path(os.devnull).open(encoding="utf-8") as nothing:
            assert asking.ask(QUESTION, nothing, io.StringIO()) == "no"


class TestWhoIsAsked:
    def test_nobody_unless_both_ends_are_a_terminal(self, terminal: Terminal) -> None:
        assert terminal_asker(io.StringIO(), terminal.stderr) is None
        assert terminal_asker(terminal.stdin, io.StringIO()) is None
        assert terminal_asker(terminal.stdin, terminal.stderr) is not None

    def test_the_streams_of_the_process_are_the_default(
        self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", terminal.stdin)
        monkeypatch.setattr(sys, "stderr", terminal.stderr)

        assert terminal_asker() is not None

    @pytest.mark.parametrize("name", ["stdin", "stderr"])
    def test_nobody_when_a_stream_was_closed(
        self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(sys, "stdin", terminal.stdin)
        monkeypatch.setattr(sys, "stderr", terminal.stderr)
        monkeypatch.setattr(sys, name, None)

        assert terminal_asker() is None


class TestQuestion:
    def test_it_lists_what_is_missing_by_operation(self) -> None:
        rows = (
            _row("read", "src", path="/p/src"),
            _row("read", "docs", granted=True),
            _row("write", "my docs", note="kept only if the operation succeeds"),
            _row("loopback", "", operation="op-2"),
        )

        assert render(Question("report", "report.yaml", Review(rows=rows))) == (
            "report (report.yaml) asks for what nobody has allowed yet:\n"
            "  survey/op-1\n"
            "    read:src  = /p/src\n"
            "    'write:my docs'  (kept only if the operation succeeds)\n"
            "  survey/op-2\n"
            "    loopback\n"
            "Allow? y = for this run, r = always for this very template in this project, n = no [n] "
        )

    def test_it_is_what_stands_on_the_terminal(self, terminal: Terminal) -> None:
        shown = terminal.ask(b"n\n")[1]

        assert shown.replace("\r\n", "\n").startswith(render(QUESTION))

    def test_a_change_is_shown(self) -> None:
        text = render(Question("w", "", Review(), Change(("write:a b", "loopback"), ("env:CI",))))

        assert "The template has changed since you allowed it.\n  new: 'write:a b', loopback\n  gone: env:CI\n" in text

    def test_a_change_that_asks_for_the_same_is_said(self) -> None:
        assert "since you allowed it. It asks for the same.\n" in render(Question("w", "", Review(), Change()))

    def test_why_nothing_can_be_remembered_is_said(self) -> None:
        text = render(Question("w", "", Review(), forgetful="no home\x1b"))

        assert "The answer cannot be remembered: no home\\x1b\n" in text
        assert text.endswith("Allow? y = for this run, n = no [n] ")

    def test_a_text_cannot_pose_as_something_else(self) -> None:
        text = render(Question("w", "", Review(rows=(_row("read", "src  (granted)\n  survey/op-2"),))))

        assert r"    $'read:src  (granted)\x0a  survey/op-2'" in text

    @given(st.lists(st.tuples(st.text(), st.text(), st.text()), max_size=5), st.text(), st.text())
    def test_nothing_is_left_out_and_nothing_acts_on_the_terminal(
        self, texts: list[tuple[str, str, str]], name: str, source: str
    ) -> None:
        rows = tuple(_row("read", value, note=note, path=path) for value, note, path in texts)

        text = render(Question(name, source, Review(rows=rows), Change((name,), (source,)), "x"))

        assert all(line == escape(line) for line in text.split("\n"))
        assert all(escape(note) in text for _, note, _ in texts)
        assert text.count("    read:") + text.count("    'read:") + text.count("    $'read:") >= len(rows)
