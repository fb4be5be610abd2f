"""The schema of a model's answer: which words of JSON Schema it may use, and whether an answer is as it says. Pure.

A schema is a stranger's, and so is an answer. So there are no patterns, which may take for ever to try, no references,
which may lead in a circle or to an address, and nothing that looks at one value more than once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from sage_sandbox.workflow.findings import did_you_mean, quote
from sage_sandbox.workflow.positions import FieldPath

NODES_MAX: Final = 1_000
DEPTH_MAX: Final = 20
SHOWN: Final = 120


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_IS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: _is_number(value) and value == int(value),
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
_COUNTS: Final = ("minItems", "maxItems", "minLength", "maxLength")
_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_NOTES: Final = ("title", "description")
_ABOUT: Final[Mapping[str, tuple[str, ...]]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "minItems", "maxItems"),
    "string": ("minLength", "maxLength"),
    "integer": _BOUNDS,
    "number": _BOUNDS,
}
WORDS: Final = (
    "type", "enum", "const", "anyOf", "properties", "required", "additionalProperties", "items", *_COUNTS, *_BOUNDS,
    *_NOTES,
)  # fmt: skip


# -- the schema ----------------------------------------------------------------------------------------------------


def schema_troubles(schema: Any) -> Iterator[tuple[FieldPath, str]]:
    """What is wrong with a schema, each with where it stands in it; a schema without trouble can be asked of a model.

    `mismatch` may be called only with such a schema.
    """
    if isinstance(schema, dict) and schema.get("type") != "object":
        yield ("type",), "an answer is an object: write type: object"
    queue: list[tuple[FieldPath, Any]] = [((), schema)]
    nodes = 0
    while queue:
        path, node = queue.pop(0)
        nodes += 1
        if nodes > NODES_MAX or len(path) > 2 * DEPTH_MAX:
            yield (), f"the schema is too large: at most {NODES_MAX:,} parts, nested {DEPTH_MAX} deep"
            return
        if not isinstance(node, dict):
            yield path, "must be a schema, a mapping"
            continue
        yield from ((path + below, text) for below, text in _troubles(node))
        queue += [(path + below, part) for below, part in _parts(node)]


def _parts(node: Mapping[str, Any]) -> Iterator[tuple[FieldPath, Any]]:
    """The schemas within a schema."""
    properties = node.get("properties")
    if isinstance(properties, dict):
        yield from ((("properties", name), part) for name, part in properties.items())
    variants = node.get("anyOf")
    if isinstance(variants, list):
        yield from ((("anyOf", number), part) for number, part in enumerate(variants))
    if "items" in node:
        yield ("items",), node["items"]


def _troubles(node: Mapping[str, Any]) -> Iterator[tuple[FieldPath, str]]:
    for word, value in node.items():
        if word not in WORDS:
            known = did_you_mean(word, WORDS) or f", known: {', '.join(WORDS)}"
            yield (word,), f"{quote(word)} cannot be asked of an answer{known}"
        elif text := _word_trouble(word, value):
            yield (word,), text
    if not {"type", "enum", "const", "anyOf"} & node.keys():
        yield (), "must say type, enum, const or anyOf"


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _names_types(value: Any) -> bool:
    kinds = value if isinstance(value, list) and value else [value]
    return all(isinstance(kind, str) and kind in _IS for kind in kinds)


def _is_listed(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= NODES_MAX


_LISTED: Final = f"must be a list of 1 to {NODES_MAX:,}"
_RULES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "type": (_names_types, f"must be one of {', '.join(_IS)}, or a list of them"),
    "enum": (
        lambda value: _is_listed(value) and all(map(_is_scalar, value)),
        f"{_LISTED} texts, numbers, true, false or null",
    ),
    "const": (_is_scalar, "must be a text, a number, true, false or null"),
    "anyOf": (_is_listed, f"{_LISTED} schemas"),
    "properties": (lambda value: isinstance(value, dict), "must be a mapping"),
    "required": (
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        "must be a list of names",
    ),
    "additionalProperties": (lambda value: isinstance(value, bool), "must be true or false"),
    **dict.fromkeys(
        _COUNTS,
        (lambda value: _is_number(value) and value >= 0 and value == int(value), "must be a whole number from 0"),
    ),
    **dict.fromkeys(_BOUNDS, (_is_number, "must be a number")),
    **dict.fromkeys(_NOTES, (lambda value: isinstance(value, str), "must be text")),
}


def _word_trouble(word: str, value: Any) -> str:
    fits, text = _RULES.get(word, (lambda _: True, ""))
    return "" if fits(value) else text


def is_strict(schema: Mapping[str, Any]) -> bool:
    """Whether every object in it has exactly the properties it names: what some providers can hold a model to."""
    if "properties" in schema or schema.get("type") == "object":
        names = set(schema.get("properties", {}))
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != names:
            return False
    return all(is_strict(part) for _, part in _parts(schema))


def with_single_types(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same schema with one type at each place: some providers know no lists of them."""
    made = dict(schema)
    if isinstance(schema.get("properties"), dict):
        made["properties"] = {name: with_single_types(part) for name, part in schema["properties"].items()}
    if "items" in schema:
        made["items"] = with_single_types(schema["items"])
    if "anyOf" in schema:
        made["anyOf"] = [with_single_types(part) for part in schema["anyOf"]]
    kinds = schema.get("type")
    if not isinstance(kinds, list):
        return made
    notes: dict[str, Any] = {word: made[word] for word in _NOTES if word in made}
    return {**notes, "anyOf": made.get("anyOf") or [_of_type(kind, made) for kind in dict.fromkeys(kinds)]}


def _of_type(kind: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """What a schema says of values of one type: each part of it stands at one of them only."""
    words = {"type", "enum", "const", *_ABOUT.get(kind, ())}
    return {**{word: value for word, value in schema.items() if word in words}, "type": kind}


# -- an answer -----------------------------------------------------------------------------------------------------


def mismatch(value: Any, schema: Mapping[str, Any], place: str = "the answer") -> str:
    """The first thing in which a value is not as its schema says, in the user's words; empty if there is none."""
    if text := _plain_mismatch(value, schema):
        return f"{place} {text}"
    variants = schema.get("anyOf", ())
    if variants and all(mismatch(value, variant) for variant in variants):
        return f"{place} fits none of the variants: {_shown(value)}"
    if isinstance(value, dict):
        return _object_mismatch(value, schema, place)
    if isinstance(value, list) and "items" in schema:
        found = (mismatch(item, schema["items"], f"{place}[{number}]") for number, item in enumerate(value))
        return next(filter(None, found), "")
    return ""


def _object_mismatch(value: Mapping[str, Any], schema: Mapping[str, Any], place: str) -> str:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            return f"{place} lacks {quote(name)}"
    for name, item in value.items():
        if name in properties:
            if text := mismatch(item, properties[name], f"{place}.{quote(name)}"):
                return text
        elif schema.get("additionalProperties") is False:
            return f"{place} has {quote(name)}, which the schema does not name"
    return ""


def _plain_mismatch(value: Any, schema: Mapping[str, Any]) -> str:
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if kinds and not any(_IS[kind](value) for kind in kinds):
        return f"must be {' or '.join(kinds)}, not {_shown(value)}"
    if "enum" in schema and not any(_same(value, known) for known in schema["enum"]):
        return f"must be one of {_shown(schema['enum'])}, not {_shown(value)}"
    if "const" in schema and not _same(value, schema["const"]):
        return f"must be {_shown(schema['const'])}, not {_shown(value)}"
    if isinstance(value, str | list):
        return _count_mismatch(len(value), schema, "Length" if isinstance(value, str) else "Items")
    return _bound_mismatch(value, schema) if _is_number(value) else ""


def _count_mismatch(count: int, schema: Mapping[str, Any], what: str) -> str:
    if count < schema.get(f"min{what}", 0):
        return f"is too short: {count:,} of at least {schema[f'min{what}']:,}"
    if count > schema.get(f"max{what}", count):
        return f"is too long: {count:,} of at most {schema[f'max{what}']:,}"
    return ""


def _bound_mismatch(value: float, schema: Mapping[str, Any]) -> str:
    fits: Mapping[str, Callable[[float], bool]] = {
        "minimum": lambda bound: value >= bound,
        "maximum": lambda bound: value <= bound,
        "exclusiveMinimum": lambda bound: value > bound,
        "exclusiveMaximum": lambda bound: value < bound,
    }
    for word, holds in fits.items():
        if word in schema and not holds(schema[word]):
            return f"must keep to {word} {schema[word]}: {_shown(value)}"
    return ""


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON: true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(item, other[name]) for name, item in one.items())
    return bool(one == other)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
