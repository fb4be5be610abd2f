"""``${path.to.value}``: read, checked against what a phase may refer to, and put in exactly once.

A reference is a path look-up, never an expression. A text that is one whole reference takes the value with its type;
inside other text the value must be a scalar; ``$${`` is a literal ``${``. What comes out of a value is never read
again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sage_sandbox.errors import ReferenceMissing
from sage_sandbox.frozen import frozen
from sage_sandbox.policy import RESULT_MAX, format_size
from sage_sandbox.workflow.definition import Operation
from sage_sandbox.workflow.findings import quote
from sage_sandbox.workflow.positions import FieldPath, walk

_MARK: Final = re.compile(r"\$\$\{|\$\{")
_PATH: Final = re.compile(r"([^.{}$\s]+(?:\.[^.{}$\s]+)*)\}")


@frozen
class Reference:
    """A path: its first step names where to look (params, feature, or a dependency's id)."""

    steps: tuple[str, ...]

    def __str__(self) -> str:
        """The reference as it is written."""
        return "${" + ".".join(self.steps) + "}"


def parse(text: str) -> tuple[str | Reference, ...]:
    """The pieces of a text, ``$${`` already turned to ``${``; ValueError where a ``${`` is no reference."""
    pieces: list[str | Reference] = []
    literal, at = "", 0
    while mark := _MARK.search(text, at):
        literal += text[at : mark.start()]
        at = mark.end()
        if mark[0] == "$${":
            literal += "${"
            continue
        path = _PATH.match(text, at)
        if not path:
            raise ValueError(
                f"{quote(text[mark.start() : at + 20])} is no reference: write ${{a.b}}, or $${{ for ${{ itself"
            )
        pieces += [literal] if literal else []
        pieces.append(Reference(tuple(path[1].split("."))))
        literal, at = "", path.end()
    literal += text[at:]
    return (*pieces, literal) if literal or not pieces else tuple(pieces)


def texts_with_references(value: Any) -> Iterator[tuple[FieldPath, str]]:
    """Every text in a JSON-like value that needs `parse`; keys are not looked at, they are never replaced."""
    return ((path, item) for path, item in walk(value) if isinstance(item, str) and "${" in item)


def scope(params: Mapping[str, Any], feature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Where references look: ``inputs`` has the result of each direct dependency by phase id."""
    return {**inputs, "params": params, "feature": feature}


def resolve_operation(operation: Operation, roots: Mapping[str, Any]) -> Operation:
    """The operation with its references replaced, wherever it may hold any; ReferenceMissing if one cannot be."""
    made = replace(operation, params=resolve(operation.params, roots), argv=resolve_argv(operation.argv, roots))
    if not operation.prompt:
        return made
    resolver = _Resolver(roots)
    return replace(made, prompt=resolver.prose(operation.prompt), system=resolver.prose(operation.system))


def resolve(value: Any, roots: Mapping[str, Any]) -> Any:
    """A copy of a JSON-like value with its references replaced."""
    return _Resolver(roots).fill(value)


def resolve_argv(argv: Sequence[str], roots: Mapping[str, Any]) -> tuple[str, ...]:
    """The arguments with their references replaced by text; one that thereby turns into an option is refused."""
    resolver = _Resolver(roots)
    return tuple(_argument(text, resolver, "--" in argv[:index]) for index, text in enumerate(argv))


def _argument(text: str, resolver: _Resolver, options_ended: bool) -> str:
    if "${" not in text:
        return text
    pieces = parse(text)
    filled = "".join(piece if isinstance(piece, str) else resolver.text(piece) for piece in pieces)
    if "\0" in filled:
        raise ReferenceMissing(f"the argument {quote(text)} became one with a NUL character")
    if isinstance(pieces[0], Reference) and filled.startswith("-") and not options_ended:
        raise ReferenceMissing(
            f"the argument {quote(text)} became {quote(filled)}, which the program would take for an option",
            f"write it as --option={text}, or put -- before it",
        )
    return filled


class _Resolver:
    """Replaces references; holds how much text they have made so far, since a short template could make it endless."""

    def __init__(self, roots: Mapping[str, Any]) -> None:
        self._roots = roots
        self._made = 0

    def fill(self, value: Any) -> Any:
        """Recursion is safe: a template is at most 64 levels deep, and values put in are not entered."""
        if isinstance(value, str):
            return self._fill_text(value) if "${" in value else value
        if isinstance(value, dict):
            return {key: self.fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item) for item in value]
        return value

    def _fill_text(self, text: str) -> Any:
        pieces = parse(text)
        if len(pieces) == 1 and isinstance(pieces[0], Reference):
            return look_up(pieces[0], self._roots)
        return "".join(piece if isinstance(piece, str) else self.text(piece) for piece in pieces)

    def text(self, reference: Reference) -> str:
        """The value as it stands inside text."""
        value = look_up(reference, self._roots)
        if isinstance(value, dict | list):
            kind = "a mapping" if isinstance(value, dict) else "a list"
            raise ReferenceMissing(f"{quote(str(reference))} is {kind}, and only a scalar fits inside text")
        return self._counted(value if isinstance(value, str) else json.dumps(value))

    def prose(self, text: str) -> str:
        """A text for a model: a mapping or a list is read there as JSON."""
        if "${" not in text:
            return text
        return "".join(piece if isinstance(piece, str) else self._json(piece) for piece in parse(text))

    def _json(self, reference: Reference) -> str:
        value = look_up(reference, self._roots)
        return self._counted(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))

    def _counted(self, made: str) -> str:
        self._made += len(made)
        if self._made > RESULT_MAX:
            raise ReferenceMissing(f"the references make more than {format_size(RESULT_MAX)} of text")
        return made


def look_up(reference: Reference, roots: Mapping[str, Any]) -> Any:
    """The value a reference stands for; in a list a step is an index from 0."""
    value: Any = roots
    for step in reference.steps:
        if isinstance(value, Mapping) and step in value:
            value = value[step]
        elif isinstance(value, list) and re.fullmatch("[0-9]{1,9}", step) and int(step) < len(value):
            value = value[int(step)]
        else:
            raise ReferenceMissing(f"{quote(str(reference))} leads nowhere: there is no {quote(step)}")
    return value
