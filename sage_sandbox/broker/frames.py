"""What passes over the broker's socket: two lengths, a JSON object, and a body of bytes, both with a cap."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

from sage_sandbox.policy import RESULT_MAX, MiB

HEAD_MAX: Final = 4 * MiB
BODY_MAX: Final = RESULT_MAX
SIZES: Final = struct.Struct("!II")


class BadFrame(ValueError):
    """The other side speaks something else."""


def pack(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A frame; BadFrame if it is larger than may be."""
    text = json.dumps(head, separators=(",", ":")).encode()
    if len(text) > HEAD_MAX or len(body) > BODY_MAX:
        raise BadFrame("a frame is too large")
    return SIZES.pack(len(text), len(body)) + text + body


def read_sizes(data: bytes) -> tuple[int, int]:
    """The lengths of what follows, in bytes; BadFrame if they are larger than may be."""
    head, body = SIZES.unpack(data)
    if head > HEAD_MAX or body > BODY_MAX:
        raise BadFrame("a frame is too large")
    return head, body


def read_head(data: bytes) -> dict[str, Any]:
    """The JSON object; BadFrame if it is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadFrame("a frame holds no JSON") from error
    if not isinstance(found, dict):
        raise BadFrame("a frame holds no mapping")
    return found
