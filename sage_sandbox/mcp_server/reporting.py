"""A run as a page for people: how it stands, what each phase took and found, what went wrong, what files there are.

Markdown, in which everything that came out of a template or an operation is on a line of its own and indented: it can
neither end its block nor be taken for a heading or a link.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from sage_sandbox.escaping import clip
from sage_sandbox.handing import OperationLeft, PhaseLeft, narrower
from sage_sandbox.history import Standing
from sage_sandbox.mcp_server.answers import ANSWER_MOST, errors_of
from sage_sandbox.policy import format_duration, format_size

_RESULT_MOST: Final = 500
_LINE_MOST: Final = 300
_FILES_MOST: Final = 10


def report(standing: Standing, phases: Sequence[PhaseLeft]) -> str:
    """The page, at most `ANSWER_MOST` bytes of it: of a long run the last phases, which the others led to."""
    head = "\n".join(_head(standing))
    sections: list[str] = []
    room = ANSWER_MOST - len(head.encode()) - 100
    for phase in reversed(phases):
        section = "\n".join(_phase(phase))
        room -= len(section.encode()) + 1
        if room < 0:
            break
        sections.insert(0, section)
    left_out = len(phases) - len(sections)
    more = [f"\n{left_out} earlier phases are left out here."] if left_out else []
    return "\n".join([head, *more, *sections]) + "\n"


def _head(standing: Standing) -> Iterator[str]:
    done = standing.progress
    killed = " (its process was killed)" if standing.interrupted else ""
    yield f"# {standing.feature}: {standing.status}{killed}"
    yield f"\n{done.get('completed', 0)} of {done.get('total', 0)} phases, {done.get('percentage', 0)} %."
    yield f"Started {standing.started_at}, last changed {standing.updated_at}. Template:\n"
    yield _quoted(standing.template)
    figures = {name: value for name, value in standing.metrics.items() if isinstance(value, int | float | str)}
    if figures:
        yield "\n" + ", ".join(f"{name} {value}" for name, value in figures.items())
    for number, error in enumerate(errors_of(standing)):
        if not number:
            yield "\n## What went wrong\n"
        place = "/".join(part for part in (error.phase, error.operation) if part)
        yield _quoted(f"{place}: {error.reason}: {error.message}" if place else f"{error.reason}: {error.message}")


def _phase(phase: PhaseLeft) -> Iterator[str]:
    yield f"\n## {phase.id}: {phase.status}, {format_duration(phase.duration_s)}"
    for operation in phase.operations:
        yield from _operation(operation)


def _operation(operation: OperationLeft) -> Iterator[str]:
    outcome = f"rejected ({operation.reason})" if operation.reason else "fulfilled"
    yield f"\n### {operation.id}: {outcome}\n"
    if operation.reason:
        yield _quoted(operation.handed.error)
        if operation.handed.hint:
            yield _quoted(f"hint: {operation.handed.hint}")
    else:
        yield _quoted(json.dumps(narrower(operation.handed.value, _RESULT_MOST), ensure_ascii=False), 2 * _RESULT_MOST)
    for file in operation.artifacts[:_FILES_MOST]:
        yield _quoted(f"{file.path}, {format_size(file.size)}")
    if len(operation.artifacts) > _FILES_MOST:
        yield _quoted(f"and {len(operation.artifacts) - _FILES_MOST} more files")


def _quoted(text: str, most: int = _LINE_MOST) -> str:
    return f"    {clip(' '.join(text.split()), most)}"
