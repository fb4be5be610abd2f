from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.escaping import clip, escape, escape_lines

BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN"}
INVISIBLE = (
    "\xad\u034f\u115f\u1160\u17b4\u180b\u180e\u200b\u200d\u2060\u2064\u3164\ufe0f\ufeff\uffa0"
    "\U0001d173\U000e0001\U000e0100"
)
ANY = st.text(st.characters() | st.sampled_from("\x1b\x07\u202e\u2066\u200b\n\t\r\ud800\udcff" + INVISIBLE))


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("plain äöü 漢字 🙂", "plain äöü 漢字 🙂"),
        (r"\x1b[31mred", "\x1b[31mred"),
        (r"\x9b2J", "\x9b2J"),
        (r"\x00\x07\x08\x0a\x0d\x7f", "\x00\a\b\n\r\x7f"),
        (r"a\u202eb\u2066", "a\u202eb\u2066"),
        (r"\u2028\u2029", "\u2028\u2029"),
        (r"\ud800\udcff", "\ud800\udcff"),
        (r"\U000e0041", "\U000e0041"),
    ],
)
def test_what_a_terminal_acts_on_is_spelled(expected: str, text: str) -> None:
    assert expected == escape(text)


@pytest.mark.parametrize("char", INVISIBLE)
def test_what_a_reader_does_not_see_is_spelled(char: str) -> None:
    assert escape(char).startswith("\\")


@given(ANY)
def test_nothing_escaped_is_a_control_or_turns_the_text_around(text: str) -> None:
    for char in escape(text):
        assert unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(char) not in BIDI_CONTROLS or unicodedata.category(char) == "Cn"


def test_no_character_of_unicode_that_is_a_control_gets_through() -> None:
    through = [
        char
        for char in map(chr, range(0x110000))
        if escape(char) == char
        and (unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in BIDI_CONTROLS)
    ]

    assert [char for char in through if unicodedata.category(char) != "Cn"] == []


@given(ANY)
def test_escaping_twice_is_escaping_once(text: str) -> None:
    assert escape(text) == escape(escape(text))


@given(ANY)
def test_lines_keep_their_breaks_and_tabs_and_nothing_else(text: str) -> None:
    safe = escape_lines(text)

    assert text.count("\n") == safe.count("\n")
    assert text.count("\t") == safe.count("\t")
    assert escape(text.replace("\n", "").replace("\t", "")) == safe.replace("\n", "").replace("\t", "")


@given(ANY, st.integers(1, 40))
def test_clipping_cuts_what_is_already_safe(text: str, width: int) -> None:
    cut = clip(text, width)

    assert len(cut) <= width
    assert cut == escape(text) or (cut.endswith("…") and escape(text).startswith(cut[:-1]))


def test_clipping_to_nothing_leaves_the_mark() -> None:
    assert clip("abc", 0) == "…"
    assert clip("", 0) == ""
