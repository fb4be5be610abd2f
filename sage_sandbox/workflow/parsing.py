"""From the bytes of a template to plain data: decoding, JSON and TOML here, YAML in `strict_yaml`."""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from typing import Any, Final, Literal

from sage_sandbox.frozen import frozen
from sage_sandbox.policy import MiB
from sage_sandbox.workflow.findings import EnoughFound, Finding, Findings, refuse
from sage_sandbox.workflow.positions import (
    DEPTH_MAX,
    FieldPath,
    JsonLocator,
    Locator,
    Place,
    TomlLocator,
    place_at,
    walk,
)

Format = Literal["yaml", "json", "toml"]
FORMATS: Final[dict[str, Format]] = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}
SIZE_MAX: Final[dict[Format, int]] = {"yaml": MiB, "json": 32 * MiB, "toml": 32 * MiB}

VALUES_MAX: Final = 200_000
"""In the params of one operation; as many as a result may have."""

_BITS_MAX: Final = 13_000  # about 3,900 digits; Python refuses to print more than 4,300
_TOO_DEEP: Final = f"nested deeper than {DEPTH_MAX} levels"
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
_LONG_NUMBER = re.compile(r'(?<![\w."])-?\d{4301}')
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_TOML_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)")
# tomllib takes quadratic time for a key of many dotted parts.
_DOTTED = re.compile(
    rf"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{DEPTH_MAX}}}""",
)


@frozen
class Document:
    """The data of one template, and where it stands in the text."""

    data: Any
    locator: Locator


def parse(content: bytes, kind: Format, source: str, findings: Findings) -> Document:
    """Read a template's bytes; DefinitionError if they are no document at all, ``findings`` for lesser sins."""
    if len(content) > SIZE_MAX[kind]:
        raise refuse(source, f"larger than {SIZE_MAX[kind] // MiB} MiB, the most a {kind.upper()} template may have")
    text = _decode(content, source)
    if kind == "yaml":
        from sage_sandbox.workflow.strict_yaml import read_yaml  # PyYAML loads only where it is used

        return Document(*read_yaml(text, source, findings))
    if kind == "json":
        return Document(read_json(text, source, findings), JsonLocator(text))
    return Document(_read_toml(text, source), TomlLocator(text))


def _decode(content: bytes, source: str) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4]:
        raise refuse(source, "not UTF-8 (it looks like UTF-16 or UTF-32)", (1, 1), "save it as UTF-8")
    try:
        return content.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        raise refuse(source, "not UTF-8", place_at(before, len(before)), "save it as UTF-8") from None


class _Repeated(dict[str, Any]):
    """An object that had keys twice, which ``keys_twice`` names."""

    keys_twice: dict[str, None]


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _remember(pairs)


def _remember(pairs: list[tuple[str, Any]]) -> _Repeated:
    made = _Repeated()
    made.keys_twice = {}
    for key, value in pairs:
        if key in made:
            made.keys_twice[key] = None
        made[key] = value
    return made


def read_json(text: str, source: str, findings: Findings) -> Any:
    """Strict JSON: keys twice and lone surrogates are findings (NaN is one where a number is checked)."""
    repeated = False

    def pairs_hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        made = _pairs(pairs)
        repeated = repeated or type(made) is _Repeated
        return made

    data = _load_json(text, source, pairs_hook)
    if repeated or _SURROGATE_ESCAPE.search(text):
        with suppress(EnoughFound):
            _find_sins(data, findings)
    return data


def _load_json(text: str, source: str, hook: Any) -> Any:
    try:
        return json.loads(text, object_pairs_hook=hook)
    except json.JSONDecodeError as error:
        raise refuse(source, f"not JSON: {_lower(error.msg)}", (error.lineno, error.colno)) from None
    except RecursionError:
        raise refuse(source, _TOO_DEEP, _deep_place(text)) from None
    except ValueError:
        raise refuse(source, "a number has too many digits", _number_place(text)) from None


def _find_sins(data: Any, findings: Findings) -> None:
    for path, item in walk(data):
        if isinstance(item, _Repeated):
            for key in item.keys_twice:
                findings.add(Finding((*path, key), "the key is there twice", key=True))
        texts = [item] if isinstance(item, str) else item if isinstance(item, dict) else ()
        if any(_is_broken(text) for text in texts):
            findings.add(Finding(path, "holds half of a surrogate pair, which is no character"))


def _is_broken(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


def _deep_place(text: str) -> Place:
    """Where the nesting first gets too deep."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth > DEPTH_MAX:
            return place_at(text, match.start())
    return 1, 1


def _number_place(text: str) -> Place:
    match = _LONG_NUMBER.search(text)
    return place_at(text, match.start()) if match else (1, 1)


def _read_toml(text: str, source: str) -> Any:
    if dotted := _DOTTED.search(text):
        raise refuse(source, _TOO_DEEP, place_at(text, dotted.start()))
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _TOML_PLACE.search(str(error))
        found = (int(place[1]), int(place[2])) if place else place_at(text, len(text))
        message = _TOML_PLACE.sub("", str(error)).removesuffix(" (at end of document)")
        raise refuse(source, f"not TOML: {_lower(message)}", found) from None
    except RecursionError:
        raise refuse(source, _TOO_DEEP, _deep_place(text)) from None
    except ValueError:
        raise refuse(source, "a number has too many digits", _number_place(text)) from None


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def find_odd_values(value: Any, base: FieldPath, findings: Findings) -> None:
    """Report what JSON could not carry to an operation: dates, infinities, keys that are no text, too much depth."""
    for count, (path, item) in enumerate(walk(value, DEPTH_MAX + 1)):
        if count >= VALUES_MAX:
            findings.add(Finding(base, f"holds more than {VALUES_MAX:,} values"))
            return
        if message := _oddity(path, item):
            findings.add(Finding(base + path, message))


def _oddity(path: FieldPath, item: Any) -> str:
    if len(path) > DEPTH_MAX:
        return _TOO_DEEP
    if isinstance(item, float) and not math.isfinite(item):
        return "must be a finite number"
    if isinstance(item, int) and item.bit_length() > _BITS_MAX:
        return "the number has too many digits"
    if item is None or isinstance(item, str | int | float | list | dict):
        return ""
    return f"a {type(item).__name__} is not allowed here: put it in quotes"
