"""Records that are sealed well and are not what this program writes: said with their place, once they are read."""

from __future__ import annotations

import pytest
from store.stored import DEFINITION, ended, state_of

from sage_sandbox.errors import StateCorrupted
from sage_sandbox.store.records import (
    decode_checkpoint,
    decode_definition,
    decode_state,
    encode_checkpoint,
    encode_definition,
    encode_state,
)


@pytest.mark.parametrize(
    ("kind", "payload", "decode"),
    [
        ("state", encode_state(state_of()), decode_state),
        ("definition", encode_definition(DEFINITION), decode_definition),
        ("checkpoint", encode_checkpoint(ended("p")), lambda payload, path: decode_checkpoint(payload, path, 1)),
    ],
)
def test_a_record_of_no_version_is_refused_with_its_place(kind, payload, decode):
    assert b'"version":"1.0"' in payload
    decode(payload, "where")

    with pytest.raises(StateCorrupted, match=f"^where: the {kind} has no version that this program knows: 'x'$"):
        decode(payload.replace(b'"version":"1.0"', b'"version":"x"'), "where")


@pytest.mark.parametrize("rest", [b"", b'{"op":12,"more":3}}', b'{"op":1}}  '])
def test_results_that_do_not_add_up_are_refused_when_they_are_looked_at(rest):
    payload = encode_checkpoint(ended("p"))
    head, mark, _ = payload.partition(b'"results":')
    read = decode_checkpoint(head + mark + rest, "where", 1)

    with pytest.raises(StateCorrupted, match=r"^where is no checkpoint of this program: ValueError: its results"):
        list(read.operations)
