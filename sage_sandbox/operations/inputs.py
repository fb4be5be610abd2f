"""What a phase is given of the phases it depends on: as JSON text for the sandbox, as data for references."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sage_sandbox.outcome import Outcome


def phase_json(operations: Iterable[tuple[str, Outcome]], *, single: bool) -> bytes:
    """The result of a phase: its one operation's own, or all of them by id; null for one that was rejected.

    Results are JSON text that the supervisor has checked, so they are joined as they are, not read and written again.
    """
    results = [(name, outcome.result if outcome.ok else b"null") for name, outcome in operations]
    return results[0][1] if single else _object(results)


def inputs_json(values: Mapping[str, bytes]) -> bytes:
    """The results of several phases by phase id."""
    return _object(values.items())


def _object(members: Iterable[tuple[str, bytes]]) -> bytes:
    return b"{" + b",".join(json.dumps(name).encode() + b":" + value for name, value in members) + b"}"


class Scope(Mapping[str, Any]):
    """What ``${…}`` may refer to in one phase: params, feature, and the results of its dependencies.

    A result is parsed when something refers to it, and once for all that do: ``parsed`` is shared.
    """

    def __init__(
        self, params: Mapping[str, Any], feature: str, values: Mapping[str, bytes], parsed: dict[str, Any]
    ) -> None:
        self._given: dict[str, Any] = {"params": params, "feature": feature}
        self._values = values
        self._parsed = parsed

    def __getitem__(self, name: str) -> Any:
        if name in self._given:
            return self._given[name]
        if name not in self._values:
            raise KeyError(name)
        if name not in self._parsed:
            self._parsed[name] = json.loads(self._values[name])
        return self._parsed[name]

    def __contains__(self, name: object) -> bool:
        return name in self._given or name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter({**self._given, **self._values})

    def __len__(self) -> int:
        return len(self._given.keys() | self._values.keys())


class Results:
    """The results of the phases that others still wait for; each is let go when its last dependent has ended."""

    def __init__(self, params: Mapping[str, Any], feature: str, readers: Mapping[str, int]) -> None:
        self._params = params
        self._feature = feature
        self._readers = dict(readers)
        self._values: dict[str, bytes] = {}
        self._parsed: dict[str, Any] = {}

    def is_awaited(self, phase: str) -> bool:
        """Whether anybody will ask for a phase's result."""
        return self._readers[phase] > 0

    def keep(self, phase: str, operations: Iterable[tuple[str, Outcome]], *, single: bool) -> None:
        """Hold a phase's result if anybody will ask for it."""
        if self.is_awaited(phase):
            self._values[phase] = phase_json(operations, single=single)

    def inputs(self, dependencies: Iterable[str]) -> bytes:
        """What an operation receives as ``inputs``: JSON text."""
        return inputs_json({phase: self._values[phase] for phase in dependencies})

    def scope(self, dependencies: Iterable[str]) -> Scope:
        """What references of a phase with these dependencies may reach."""
        return Scope(self._params, self._feature, {phase: self._values[phase] for phase in dependencies}, self._parsed)

    def done(self, dependencies: Iterable[str]) -> None:
        """A phase with these dependencies has ended and will not ask again."""
        for phase in set(dependencies):
            self._readers[phase] -= 1
            if not self._readers[phase]:
                self._values.pop(phase, None)
                self._parsed.pop(phase, None)
