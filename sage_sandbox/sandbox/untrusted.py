"""Bytes that an operation wrote, checked before anything parses them: size, depth, nodes, text, numbers."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

from sage_sandbox.policy import RESULT_MAX, format_size

NODES_MAX: Final = 200_000
DEPTH_MAX: Final = 64

# Strings go first, so that brackets and commas in them do not count. Possessive, and a string without an end reaches to
# the end of the data: what is read is never read again.
_STRING = re.compile(rb'"(?:[^"\\]++|\\(?:.|\Z))*+(?:"|\Z)', re.DOTALL)
_BRACKETS = re.compile(rb"[\[\]{}]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class UntrustedData(ValueError):
    """What an operation wrote is not what it may write; the message says why, in the user's words."""


class _NoNumber(ValueError):
    """What stands where a number should."""


def check_json(data: bytes, what: str = "the result", most: int = RESULT_MAX) -> bytes:
    """Return ``data`` if it is one JSON value fit to be parsed by anybody; UntrustedData (about ``what``) if not.

    At most ``most`` bytes of UTF-8, depth 64, 200,000 nodes (16 MiB of nested lists would become 400 MiB of objects);
    no NaN, no infinity, no lone surrogate.
    """
    if len(data) > most:
        raise UntrustedData(f"{what} is larger than {format_size(most)}")
    check_shape(data, what)
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UntrustedData(f"{what} holds a lone surrogate, which is no Unicode text") from error
    except UnicodeDecodeError as error:
        raise UntrustedData(f"{what} is not UTF-8") from error
    except _NoNumber as error:
        raise UntrustedData(f"{what} holds {error}") from error
    except ValueError as error:
        raise UntrustedData(f"{what} is not JSON: {error}") from error
    return data


def check_shape(data: bytes, what: str = "the result") -> None:
    """UntrustedData where JSON text would become too many objects, or nest too deep, before anything parses it."""
    outside = _STRING.sub(b"0", data)
    if outside.count(b",") + outside.count(b"[") + outside.count(b"{") + 1 > NODES_MAX:
        raise UntrustedData(f"{what} has more than {NODES_MAX:,} nodes")
    depth = 0
    for bracket in _BRACKETS.findall(outside):
        depth += 1 if bracket in b"[{" else -1
        if depth > DEPTH_MAX:
            raise UntrustedData(f"{what} is nested deeper than {DEPTH_MAX}")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _NoNumber(f"{text[:40]}, which is too large for a number")
    return number


def _refuse_constant(name: str) -> Any:
    raise _NoNumber(f"{name}, which is no JSON number")
