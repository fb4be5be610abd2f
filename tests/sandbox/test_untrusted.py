"""What an operation wrote is parsed only after its shape is known; a naive parser is the oracle."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sage_sandbox.policy import RESULT_MAX
from sage_sandbox.sandbox.untrusted import DEPTH_MAX, NODES_MAX, UntrustedData, check_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
JSON_LIKE = st.text(alphabet='[]{},:"\\ud8def0aeNInt-.1 \n/é').map(str.encode)


def accepted(data):
    try:
        return check_json(data) is data
    except UntrustedData:
        return False


def naive(data):
    """The same answer by parsing first: only for data that is small."""

    def refuse(name):
        raise ValueError(name)

    def depth(value):
        if isinstance(value, dict):
            value = list(value.values())
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    try:
        value = json.loads(data.decode(), parse_constant=refuse)
        json.dumps(value, allow_nan=False)
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return False
    return depth(value) <= DEPTH_MAX


@given(VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_every_json_value_is_accepted_as_it_is(value, escaped, indent):
    try:
        data = json.dumps(value, ensure_ascii=escaped, indent=indent).encode()
    except UnicodeEncodeError:
        data = json.dumps(value).encode()

    assert naive(data) == accepted(data)


@given(st.binary() | JSON_LIKE)
@example(b'"\\ud83d\\ude00"')
@example(b'"\\ude00\\ud83d"')
@example(b'{"a": "\\"]"}')
@example(b'["\\\\", "["]')
@example(b"")
def test_agrees_with_a_parser_that_trusts(data):
    assert naive(data) == accepted(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'"' + b"a" * RESULT_MAX + b'"', "larger than 16 MiB"),
        (b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1), f"nested deeper than {DEPTH_MAX}"),
        (b"[" * 100_000, f"nested deeper than {DEPTH_MAX}"),
        (b'{"a":' * 100_000, f"nested deeper than {DEPTH_MAX}"),
        (b"[" + b"0," * NODES_MAX + b"0]", "more than 200,000 nodes"),
        (b"[" + b"[]," * NODES_MAX + b"0]", "more than 200,000 nodes"),
        (b"NaN", "holds NaN, which is no JSON number"),
        (b"[1, Infinity]", "holds Infinity, which is no JSON number"),
        (b"-Infinity", "holds -Infinity, which is no JSON number"),
        (b"[1e999]", "holds 1e999, which is too large for a number"),
        (b"-1e999", "holds -1e999, which is too large for a number"),
        (b'"\\ud800"', "holds a lone surrogate"),
        (b'{"\\uDFFF": 1}', "holds a lone surrogate"),
        (b'"\xff"', "is not UTF-8"),
        (b'"\xed\xa0\x80"', "is not UTF-8"),
        (b"{", "is not JSON: "),
        (b"1 2", "is not JSON: "),
        (b'"open', "is not JSON: "),
        (b"9" * 5000, "is not JSON: "),
    ],
    ids=lambda value: value[:12].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_refuses_with_the_reason(data, why):
    with pytest.raises(UntrustedData, match=why):
        check_json(data)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * DEPTH_MAX + b"]" * DEPTH_MAX,
        b"[" + b"0," * (NODES_MAX - 2) + b"0]",
        b'"' + b"[" * 100_000 + b'"',
        b'"' + b"," * 300_000 + b'"',
        b'"\\"[[[[" ',
        b'"\\\\uD800"',
        b'"' + b"a" * (RESULT_MAX - 2) + b'"',
    ],
    ids=[
        "deepest",
        "most nodes",
        "brackets in text",
        "commas in text",
        "escaped quote",
        "escaped backslash",
        "largest",
    ],
)
def test_accepts_up_to_the_limits(data):
    assert accepted(data)
