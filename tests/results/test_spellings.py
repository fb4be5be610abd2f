from __future__ import annotations

import base64
import json
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.results.spellings import SHORTEST, anchors, spellings

VALUES = st.text(st.characters(exclude_categories=["Cs"]), min_size=SHORTEST).filter(
    lambda v: len(v.strip()) >= SHORTEST
)


def is_in(value: str, text: str) -> bool:
    return any(spelling in text for spelling in spellings(value))


@given(VALUES, st.text(), st.text())
def test_a_value_is_found_however_it_is_spelled(value: str, before: str, after: str) -> None:
    whole = before + value + after
    tame = whole.encode("utf-8", "surrogatepass").decode("utf-8", "replace")

    assert is_in(value, whole)
    assert is_in(value, json.dumps(whole))
    assert is_in(value, json.dumps(whole, ensure_ascii=False))
    assert is_in(value, json.dumps(whole).replace("/", "\\/"))
    assert is_in(value, urllib.parse.quote(tame))
    assert is_in(value, urllib.parse.quote(tame, safe=""))
    assert is_in(value, urllib.parse.quote_plus(tame))
    assert is_in(value, urllib.parse.quote(tame, safe="!'()*~"))


@given(st.text("aB3/+-_.$é", min_size=SHORTEST), st.binary(max_size=7), st.binary(max_size=7))
def test_a_value_is_found_in_base64_of_more(value: str, before: bytes, after: bytes) -> None:
    whole = before + value.encode() + after

    assert is_in(value, base64.b64encode(whole).decode())
    assert is_in(value, base64.urlsafe_b64encode(whole).decode().rstrip("="))


@given(VALUES)
def test_json_text_holds_an_anchor_of_every_spelling_in_it(value: str) -> None:
    for spelling in spellings(value):
        for ascii_only in (True, False):
            text = json.dumps(["x" + spelling + "y"], ensure_ascii=ascii_only)
            for data in (text.encode(), text.replace("/", "\\/").encode()):
                assert any(anchor in data for anchor in anchors(spelling))


@pytest.mark.parametrize("value", ["", "1234567", "  1234567  ", " " * 20])
def test_what_is_short_or_blank_is_not_looked_for(value: str) -> None:
    assert () == spellings(value)


def test_a_plain_value_has_few_spellings() -> None:
    assert ("hunter2hunter2", "aHVudGVyMmh1bnRlcj", "h1bnRlcjJodW50ZXIy", "odW50ZXIyaHVudGVyM") == spellings(
        "hunter2hunter2"
    )


def test_a_value_that_ends_a_line_is_looked_for_without_its_end() -> None:
    assert "hunter2hunter2" in spellings("hunter2hunter2\n")


def test_bytes_that_are_no_utf8_can_be_known() -> None:
    value = b"\xff\xfe0123456".decode("utf-8", "surrogateescape")

    assert is_in(value, "x" + value)
    assert is_in(value, base64.b64encode(b"\xff\xfe0123456").decode())
    assert is_in(value, "%FF%FE0123456")


@pytest.mark.parametrize("value", ["éééééééé", '"' * 8, "\\/" * 4])
def test_a_value_of_nothing_but_what_json_may_escape_has_an_anchor(value: str) -> None:
    assert (b"\\", value[0].encode()) == anchors(value)
