"""The question on a terminal: what is missing, and whether the user allows it."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Final, Literal, TextIO

from sage_sandbox.escaping import escape
from sage_sandbox.frozen import frozen
from sage_sandbox.grants.asks import quote
from sage_sandbox.grants.memory import Change
from sage_sandbox.grants.review import Review, Row

Answer = Literal["run", "remember", "no"]

_ANSWERS: Final[dict[str, Answer]] = {
    "y": "run", "yes": "run", "r": "remember", "remember": "remember", "a": "remember", "always": "remember",
}  # fmt: skip
_LINE_MAX: Final = 4096


@frozen
class Question:
    """What is put to the user: ``forgetful`` says why no answer can be remembered (empty: it can)."""

    workflow: str
    source: str
    review: Review
    change: Change | None = None
    forgetful: str = ""


Asker = Callable[[Question], Answer]


def terminal_asker(stdin: TextIO | None = None, stderr: TextIO | None = None) -> Asker | None:
    """Somebody to ask, if both ends are a terminal (default: the process's own)."""
    stdin, stderr = stdin or sys.stdin, stderr or sys.stderr
    # Python sets a standard stream to None when its descriptor was closed at the start.
    if stdin is None or stderr is None or not (stdin.isatty() and stderr.isatty()):
        return None
    return lambda question: ask(question, stdin, stderr)


def ask(question: Question, stdin: TextIO, stderr: TextIO) -> Answer:
    """Show the question, wait for one line that was typed after it; anything but a clear yes is a no."""
    stderr.write(render(question))
    stderr.flush()
    answer = _ANSWERS.get(read_line(stdin.fileno()).strip().lower(), "no")
    return "no" if answer == "remember" and question.forgetful else answer


def render(question: Question) -> str:
    """The question as text: every missing ask of every operation, nothing left out, nothing a terminal would act on."""
    return "\n".join((*_lines(question), "")) + f"{_choices(question)} [n] "


def _lines(question: Question) -> Iterator[str]:
    source = f" ({escape(question.source)})" if question.source else ""
    yield f"{quote(question.workflow)}{source} asks for what nobody has allowed yet:"
    missing = (row for row in question.review.rows if not row.granted)
    for owner, rows in groupby(missing, key=lambda row: f"{row.phase}/{row.operation}"):
        yield f"  {escape(owner)}"
        yield from (f"    {_show(row)}" for row in rows)
    yield from _change_lines(question.change)
    if question.forgetful:
        yield f"The answer cannot be remembered: {escape(question.forgetful)}"


def _show(row: Row) -> str:
    text = quote(str(row.ask))
    if row.path:
        text += f"  = {quote(row.path)}"
    return f"{text}  ({escape(row.note)})" if row.note else text


def _change_lines(change: Change | None) -> Iterator[str]:
    if change is None:
        return
    same = "" if change.new or change.gone else " It asks for the same."
    yield f"The template has changed since you allowed it.{same}"
    for word, asks in (("new", change.new), ("gone", change.gone)):
        if asks:
            yield f"  {word}: {', '.join(quote(ask) for ask in asks)}"


def _choices(question: Question) -> str:
    always = "" if question.forgetful else "r = always for this very template in this project, "
    return f"Allow? y = for this run, {always}n = no"


def read_line(descriptor: int) -> str:
    """One line that is typed from now on; empty if it has no end."""
    # From the descriptor, not the stream: what Python has buffered was typed before the question.
    try:
        termios.tcflush(descriptor, termios.TCIFLUSH)
    except termios.error:
        return ""
    line = b""
    while not line.endswith(b"\n") and len(line) <= _LINE_MAX and (chunk := os.read(descriptor, 1024)):
        line += chunk
    return line.decode("utf-8", "replace") if line.endswith(b"\n") else ""
