"""How much an operation gets: what it asks for, held against the machine and the user's ``--limit``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Final

from sage_sandbox.errors import NotGranted, UsageError
from sage_sandbox.frozen import frozen
from sage_sandbox.policy import (
    GiB,
    KiB,
    Limits,
    MiB,
    ceilings,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)
from sage_sandbox.workflow.definition import AskedLimits, Workflow


def _parse_pids(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,6}", text):
        raise ValueError(f"{text!r} is not a number of processes such as 64")
    return int(text)


_PARSERS: Final[Mapping[str, tuple[str, Callable[[str], float]]]] = {
    "memory": ("memory", parse_size),
    "cpu": ("cpu_s", parse_duration),
    "pids": ("pids", _parse_pids),
    "disk": ("disk", parse_size),
}


_NAMES: Final[Mapping[str, str]] = {field: name for name, (field, _) in _PARSERS.items()}
_FIELDS: Final = tuple(field.name for field in fields(Limits))


def parse_limit_option(text: str) -> tuple[str, float]:
    """``memory=1G`` as the name of a field of Limits and its value; UsageError on anything else."""
    name, equals, value = text.partition("=")
    if name not in _PARSERS:
        from difflib import get_close_matches

        close = get_close_matches(name, _PARSERS, n=1)
        hint = f"did you mean {close[0]}?" if close else "one of " + ", ".join(_PARSERS)
        raise UsageError(f"--limit does not know {name!r}", hint)
    if not equals:
        raise UsageError(f"--limit {name} needs a value", f"write --limit {name}=VALUE")
    try:
        return _PARSERS[name][0], _PARSERS[name][1](value)
    except ValueError as error:
        raise UsageError(f"--limit {name}: {error}") from error


def parse_limit_options(texts: Iterable[str]) -> AskedLimits:
    """All ``--limit`` of one command line; the last of a name holds, as with any option."""
    asked: dict[str, float] = dict(parse_limit_option(text) for text in texts)
    return AskedLimits(**asked)  # type: ignore[arg-type]  # each parser returns its own field's type


def machine_ceilings() -> Limits:
    """The most a template may ask for on this machine."""
    return ceilings(_memory())


def _memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """The machine's, in bytes."""
    try:
        name, kibibytes, _ = meminfo.read_bytes().split(maxsplit=2)
        if name == b"MemTotal:":
            return int(kibibytes) * KiB
    except (OSError, ValueError):
        pass  # no Linux: templates can be planned all the same
    import psutil  # costs 20 ms

    return int(psutil.virtual_memory().total)


@frozen
class Excess:
    """One limit a template asks too much of: a field of Limits, what is asked, the most there is."""

    field: str
    asked: float
    most: float

    def __str__(self) -> str:
        name = _NAMES.get(self.field, "timeout")
        return f"{name} {_format(self.field, self.asked)}, the most is {_format(self.field, self.most)}"


def effective_limits(
    asked: AskedLimits, timeout_s: float | None, overrides: AskedLimits, most: Limits, *, owner: str = "the operation"
) -> Limits:
    """The limits of one operation; NotGranted, naming every ``--limit`` that is missing, where it asks for too much."""
    limits, excesses = _settle(asked, timeout_s, overrides, most)
    _refuse([(owner, excess) for excess in excesses])
    return limits


def workflow_limits(workflow: Workflow, overrides: AskedLimits, most: Limits) -> dict[tuple[str, str], Limits]:
    """The limits of every operation by (phase, operation); one NotGranted for all that ask for too much."""
    settled: dict[tuple[str, str], Limits] = {}
    refused: list[tuple[str, Excess]] = []

    @cache
    def settle(asked: AskedLimits, timeout_s: float | None) -> tuple[Limits, list[Excess]]:
        return _settle(asked, timeout_s, overrides, most)

    for phase in workflow.phases:
        for operation in phase.operations:
            timeout_s = phase.timeout_s if operation.timeout_s is None else operation.timeout_s
            limits, excesses = settle(operation.limits, timeout_s)
            settled[phase.id, operation.id] = limits
            refused += [(f"{phase.id}/{operation.id}", excess) for excess in excesses]
    _refuse(refused)
    return settled


def _settle(
    asked: AskedLimits, timeout_s: float | None, overrides: AskedLimits, most: Limits
) -> tuple[Limits, list[Excess]]:
    values: dict[str, float] = {}
    excesses = []
    for name in _FIELDS:
        wanted = timeout_s if name == "timeout_s" else getattr(asked, name)
        override = getattr(overrides, name, None)
        ceiling = getattr(most, name) if override is None else override
        default = getattr(Limits(), name) if override is None else override
        if wanted is not None and wanted > ceiling:
            excesses.append(Excess(name, wanted, ceiling))
        values[name] = min(default if wanted is None else wanted, ceiling)
    return Limits(**values), excesses  # type: ignore[arg-type]  # each value keeps its own field's type


def _refuse(refused: Sequence[tuple[str, Excess]]) -> None:
    if not refused:
        return
    asked: dict[str, float] = {}
    for _, excess in refused:
        asked[excess.field] = max(excess.asked, asked.get(excess.field, 0))
    options = tuple(f"--limit {_NAMES[name]}={_spell(name, value)}" for name, value in asked.items() if name in _NAMES)
    hint = f"if you trust the template, add {' '.join(options)}" if options else "ask for less in the template"
    raise NotGranted("; ".join(f"{owner} asks for {excess}" for owner, excess in refused), hint, options)


def _format(name: str, value: float) -> str:
    if name == "pids":
        return str(value)
    return format_duration(value) if name in ("cpu_s", "timeout_s") else format_size(int(value))


def _spell(name: str, value: float) -> str:
    """The value as ``--limit`` takes it, never less than it is."""
    if name == "pids":
        return str(value)
    if name == "cpu_s":
        return _spell_seconds(value)
    units = ((GiB, "G"), (MiB, "M"), (KiB, "K"), (1, ""))
    return next(f"{int(value) // size}{unit}" for size, unit in units if value % size == 0)


def _spell_seconds(value: float) -> str:
    milliseconds = math.ceil(round(value * 1000, 6))
    text = f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"
    return text if parse_duration(text) >= value else f"{milliseconds + 1}ms"
