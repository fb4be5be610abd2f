"""No line can be changed, added, taken out or moved without the key."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.audit.chain import LINE_MAX, PRUNED, TEXT_MAX, Chain, Position, draft, parse, read, seal

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
TIME = "2026-01-31T10:00:00.000001Z"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def chain_of(count):
    """The lines of a small log."""
    lines, previous = [], ""
    for number in range(1, count + 1):
        raw, previous = seal(replace(draft(TIME, "state", f"{number}"), seq=number, previous=previous), KEY)
        lines.append(raw)
    return lines


def end_of(lines):
    """What a head knows of the whole log."""
    last = read(lines[-1], KEY)
    assert last is not None
    return Position(last.entry.seq, last.mac, sum(map(len, lines)))


def problems(lines, marks=()):
    """What is wrong with which line, the missing ones at the start and at the end."""
    chain = Chain(KEY, None, marks)
    found = [(number, wrong) for number, raw in enumerate(lines, 1) if (wrong := chain.follow(raw))]
    return found, chain.missing, chain.lost()


def test_a_line_is_what_the_design_says():
    raw, mac = seal(replace(draft(TIME, "start", "é", run="r", feature="f", data={"a": 1}), seq=1), KEY)
    body = raw[: raw.rindex(b',"mac"')]

    assert hmac.new(KEY, body, hashlib.sha256).hexdigest() == mac
    assert raw == body + b',"mac":"' + mac.encode() + b'"}\n'
    assert list(json.loads(raw)) == ["seq", "time", "run", "feature", "kind", "text", "data", "previous", "mac"]
    assert b" " not in raw
    assert b"\\u00e9" in raw


@given(st.text(max_size=50), st.dictionaries(st.text(max_size=4), JSON, max_size=3))
def test_what_was_written_is_read(text, data):
    entry = replace(draft(TIME, "state", text, data=data), seq=3, previous="ab")
    raw, mac = seal(entry, KEY)

    assert (entry, mac) == read(raw, KEY)
    assert raw.isascii()
    assert b"\n" not in raw[:-1]


def test_a_whole_log_has_no_problem():
    lines = chain_of(6)

    assert ([], 0, 0) == problems(lines, (end_of(lines), end_of(lines[:3])))


def test_each_changed_bit_is_found():
    lines = chain_of(3)
    whole, head = b"".join(lines), end_of(lines)
    for place in range(len(whole)):
        for bit in (0x01, 0x20, 0x80):
            changed = bytearray(whole)
            changed[place] ^= bit
            found, missing, lost = problems(bytes(changed).splitlines(keepends=True), (head,))
            assert found or missing or lost > 0, (place, bit)


@given(st.permutations(range(6)))
def test_only_the_order_of_writing_is_right(order):
    lines = chain_of(6)

    found, missing, _ = problems([lines[number] for number in order])

    assert (order == list(range(6))) == (not found and not missing)


@given(st.sets(st.integers(0, 5), min_size=1))
def test_each_line_that_is_taken_out_is_missed(gone):
    lines = chain_of(6)
    kept = [raw for number, raw in enumerate(lines) if number not in gone]

    found, missing, lost = problems(kept, (end_of(lines),))

    assert found or missing or lost > 0


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([0, 1, 1, 2], [(3, "is entry 2, which belongs before entry 2")]),
        ([0, 2, 1, 3], [(2, "is entry 3: 1 before it are missing"), (3, "is entry 2, which belongs before entry 3")]),
        ([0, 1, 4], [(3, "is entry 5: 2 before it are missing")]),
    ],
)
def test_a_moved_line_is_named(order, expected):
    lines = chain_of(5)

    assert (expected, 0, 0) == problems([lines[number] for number in order])


def test_a_changed_line_is_one_problem_not_two():
    lines = chain_of(4)
    lines[1] = lines[1].replace(b'"2"', b'"9"')

    assert ([(2, "was changed, or was not written by this log")], 0, 0) == problems(lines)


def test_an_added_line_is_one_problem_not_two():
    lines = chain_of(3)
    lines.insert(1, lines[1].replace(b'"2"', b'"9"'))

    assert ([(2, "was changed, or was not written by this log")], 0, 0) == problems(lines)


def test_a_line_of_another_branch_is_found():
    lines = chain_of(2)
    other, _ = seal(replace(draft(TIME, "state", "else"), seq=2, previous="0" * 64), KEY)

    assert [(2, "is entry 2, but does not follow from entry 1")] == problems([lines[0], other])[0]


def test_an_entry_that_was_exchanged_for_an_authentic_one_is_found():
    assert [(2, "is not what was written as entry 2")] == problems(chain_of(3), (Position(2, "0" * 64),))[0]


def test_missing_ones_at_both_ends_are_counted():
    assert ([], 2, 4) == problems(chain_of(6)[2:], (Position(10),))


def test_a_pruned_line_stands_for_the_last_one_that_was_dropped():
    lines = chain_of(4)
    head = end_of(lines[:2])
    stands, _ = seal(replace(draft(TIME, PRUNED, "2 dropped"), seq=2, previous=head.mac), KEY)

    assert ([], 0, 0) == problems([stands, *lines[2:]], (head, end_of(lines)))


def test_another_key_reads_nothing():
    assert all(read(raw, OTHER_KEY) is None for raw in chain_of(3))


@pytest.mark.parametrize(
    "raw",
    [b"", b"\n", b"[1]\n", b"{}\n", b'{"seq":true}\n', b"[" * 60_000, b'{"seq":' + b"9" * 5000 + b"}\n", b"\xff\n"],
)
def test_what_is_no_entry_says_nothing(raw):
    assert parse(raw) is None
    assert read(raw, KEY) is None


def test_the_largest_entry_fits_into_a_line():
    astral = "\U0001f600"
    most = draft(TIME, "state", astral * 9999, run=astral * 999, feature=astral * 999, data={"a": "b" * LINE_MAX})
    raw, _ = seal(replace(most, seq=10**18, previous="0" * 64), KEY)

    assert TEXT_MAX == len(most.text)
    assert {"omitted": LINE_MAX + 8} == most.data
    assert len(raw) <= LINE_MAX


@given(st.integers(0, LINE_MAX))
def test_no_data_makes_a_line_too_long(size):
    entry = draft(TIME, "state", "t", data={"a": "b" * size})

    assert len(seal(replace(entry, seq=10**18, previous="0" * 64), KEY)[0]) <= LINE_MAX


@pytest.mark.parametrize("data", [{"a": float("nan")}, {"a": object()}, {("a",): 1}])
def test_what_is_not_json_is_left_out(data):
    assert {"omitted": "not JSON"} == draft(TIME, "state", "t", data=data).data


def test_an_unknown_kind_is_a_mistake():
    with pytest.raises(ValueError, match="'lunch' is not a kind"):
        draft(TIME, "lunch", "t")
