"""YAML, the safe part of it: YAML 1.2 core scalars, plain tags only, no duplicate keys, capped in every direction.

libyaml composes the nodes; what they mean is decided here. PyYAML's own constructors are never reached.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, Final

import yaml

from sage_sandbox.workflow.findings import EnoughFound, Finding, Findings, quote, refuse
from sage_sandbox.workflow.positions import DEPTH_MAX, FieldPath, Place, place_at

NODES_MAX: Final = 200_000
ALIASES_MAX: Final = 1_000
DIGITS_MAX: Final = 4_000
"""Python refuses to print a whole number of more than 4,300 digits."""

_CORE: Final = "tag:yaml.org,2002:"
_STR, _NULL, _BOOL, _INT, _FLOAT, _MAP, _SEQ = (
    _CORE + name for name in ("str", "null", "bool", "int", "float", "map", "seq")
)
_SCALARS: Final = {
    _NULL: re.compile(r"null|Null|NULL|~|"),
    _BOOL: re.compile(r"true|True|TRUE|false|False|FALSE"),
    _INT: re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    _FLOAT: re.compile(
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
    ),
}
_MAYBE_NOT_TEXT: Final = frozenset("-+.0123456789tTfFnN~")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Composer(yaml.CSafeLoader):
    """libyaml's composer with our resolver. Its C code recurses unchecked, so depth is counted on the way down."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0

    def descend_resolver(self, current_node: yaml.Node | None, current_index: Any) -> None:
        """Called before each node is composed (aliases aside)."""
        self._depth += 1
        self._count += 1
        mark = current_node.start_mark if current_node else None
        if self._depth > DEPTH_MAX:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {DEPTH_MAX} levels", mark)
        if self._count > NODES_MAX:
            raise yaml.composer.ComposerError(None, None, f"more than {NODES_MAX:,} values", mark)

    def ascend_resolver(self) -> None:
        """Called after each node."""
        self._depth -= 1

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """The tag of a node that has none written."""
        if kind is not yaml.ScalarNode:
            return _MAP if kind is yaml.MappingNode else _SEQ
        if not implicit[0] or (value and value[0] not in _MAYBE_NOT_TEXT):
            return _STR
        return next((tag for tag, pattern in _SCALARS.items() if pattern.fullmatch(value)), _STR)


def read_yaml(text: str, source: str, findings: Findings) -> tuple[Any, YamlLocator]:
    """The data of a one-document text. Its small sins go to ``findings``; DefinitionError if it cannot be read."""
    root = _compose(text, source)
    if root is None:
        return None, YamlLocator(None, text)
    data = None
    with suppress(EnoughFound):
        data = _Builder(findings).build(root, ())
    return data, YamlLocator(root, text)


def _compose(text: str, source: str) -> yaml.Node | None:
    if odd := _UNPRINTABLE.search(text):
        raise refuse(source, f"a control character (U+{ord(odd[0]):04X}) is not allowed", place_at(text, odd.start()))
    loader = _Composer(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    except yaml.MarkedYAMLError as error:
        raise refuse(source, _sentence(error), _place(error.problem_mark)) from None
    finally:
        loader.dispose()


def _sentence(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "it cannot be read"
    if "another document" in problem:
        return "only one YAML document is allowed"
    if "maximum nesting depth" in problem:  # libyaml 0.2.6 counts by itself, and further down than we do
        return f"nested deeper than {DEPTH_MAX} levels"
    if "cannot start any token" in problem:
        problem += " (indent with spaces; quote text that starts with @ or `)"
    return f"not YAML: {problem}" + (f", {error.context}" if error.context else "")


def _place(mark: Any) -> Place:
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


class _Builder:
    """Makes plain data of nodes; an alias is built again wherever it stands, and what that may cost is capped."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._seen: set[int] = set()
        self._open: set[int] = set()
        self._visits = self._aliases = 0
        self._is_spent = False

    def build(self, node: yaml.Node, path: FieldPath) -> Any:
        """The value of a node; None where it is not allowed, once that has been said."""
        self._visits += 1
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if self._is_spent:
            return None
        if trouble := self._trouble(node, path):
            self._complain(node, path, trouble)
            return None
        self._seen.add(id(node))
        self._open.add(id(node))
        value = self._mapping(node, path) if isinstance(node, yaml.MappingNode) else self._sequence(node, path)
        self._open.discard(id(node))
        return value

    def _trouble(self, node: yaml.Node, path: FieldPath) -> str:
        """What forbids to build this mapping or sequence, if anything."""
        if node.tag != (_MAP if isinstance(node, yaml.MappingNode) else _SEQ):
            return f"the tag {quote(node.tag)} is not allowed"
        if id(node) in self._open:
            return "an alias stands inside what it refers to"
        self._aliases += id(node) in self._seen
        if self._aliases > ALIASES_MAX or self._visits > 2 * NODES_MAX or len(path) > DEPTH_MAX:
            self._is_spent = True
            return "the aliases expand to too much"
        return ""

    def _sequence(self, node: yaml.Node, path: FieldPath) -> list[Any]:
        return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]

    def _mapping(self, node: yaml.Node, path: FieldPath) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _STR:
                self._complain(key_node, path, "a key must be text: put it in quotes")
            elif key == "<<" and not key_node.style:
                self._complain(key_node, path, "merge keys (<<) are not allowed: write the fields out")
            elif key in made:
                self._complain(key_node, (*path, key), "the key is there twice")
            else:
                made[key] = self.build(value_node, (*path, key))
        return made

    def _scalar(self, node: yaml.ScalarNode, path: FieldPath) -> Any:
        tag, text = node.tag, node.value
        if tag == _STR:
            return text
        if tag not in _SCALARS:
            return self._complain(node, path, f"the tag {quote(tag)} is not allowed")
        if not _SCALARS[tag].fullmatch(text):
            return self._complain(node, path, f"{quote(text)} is not what its tag says")
        if tag == _INT:
            return self._integer(node, path)
        if tag == _FLOAT:
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return None if tag == _NULL else text[0] in "tT"

    def _integer(self, node: yaml.ScalarNode, path: FieldPath) -> int | None:
        text = node.value
        if len(text) > DIGITS_MAX:
            self._complain(node, path, "the number has too many digits")
            return None
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def _complain(self, node: yaml.Node, path: FieldPath, message: str) -> None:
        self._findings.add(Finding(path, message, place=_place(node.start_mark)))


class YamlLocator:
    """Places by the marks that libyaml left on the nodes."""

    def __init__(self, root: yaml.Node | None, text: str) -> None:
        self._root = root
        self._text = text

    def place(self, path: FieldPath, *, key: bool = False) -> Place:
        """Of two equal keys the first is meant: the second never became data."""
        if self._root is None:
            return 1, 1
        key_node, value_node = self._find(path)
        return _place((key_node if key else value_node).start_mark)

    def code_place(self, path: FieldPath, line: int, column: int) -> Place | None:
        """Lines of a ``|`` block scalar; its indentation is what the file's line has more than the value's."""
        node = self._find(path)[1] if self._root else None
        if not isinstance(node, yaml.ScalarNode) or node.style != "|":
            return None
        file_line = node.start_mark.line + line
        lines, values = self._text.split("\n"), node.value.split("\n")
        if file_line >= len(lines) or line > len(values):
            return None
        return file_line + 1, max(len(lines[file_line].rstrip("\r")) - len(values[line - 1]), 0) + column

    def line(self, path: FieldPath) -> int:
        """Counted by libyaml already."""
        return self.place(path)[0]

    def _find(self, path: FieldPath) -> tuple[yaml.Node, yaml.Node]:
        assert self._root is not None
        key = value = self._root
        for step in path:
            found = _child(value, step)
            if found is None:
                return value, value
            key, value = found
        return key, value


def _child(node: yaml.Node, step: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(step, int):
        if isinstance(node, yaml.SequenceNode) and step < len(node.value):
            return node.value[step], node.value[step]
        return None
    if not isinstance(node, yaml.MappingNode):
        return None
    return next(((key, value) for key, value in node.value if key.value == step), None)
