from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sage_sandbox.results import tokens as tokens_module
from sage_sandbox.results.tokens import estimated, is_exact, tokens


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    tokens_module._counter.cache_clear()
    yield
    tokens_module._counter.cache_clear()


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tokenizer for which every word is a token; the pieces it was given."""
    given: list[str] = []

    def encode(text: str) -> list[str]:
        given.append(text)
        return text.split()

    made = SimpleNamespace(get_encoding=lambda _: SimpleNamespace(encode_ordinary=encode))
    monkeypatch.setitem(sys.modules, "bpe_openai", made)
    return given


def test_without_a_tokenizer_they_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bpe_openai", None)

    assert not is_exact()
    assert estimated(b"some words") == tokens(b"some words")


def test_a_tokenizer_that_does_not_work_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> Any:
        raise RuntimeError("no data")

    monkeypatch.setitem(sys.modules, "bpe_openai", SimpleNamespace(get_encoding=refuse))

    assert not is_exact()


def test_with_one_they_are_counted(counting: list[str]) -> None:
    assert is_exact()
    assert 3 == tokens(b"one two three")
    assert ["one two three"] == counting


def test_a_long_text_is_counted_in_pieces_that_end_with_lines(counting: list[str]) -> None:
    text = "a word\n" * 20_000 + "x" * 120_000

    assert 40_000 + 3 == tokens(text.encode())
    assert text == "".join(counting)
    assert all(len(piece) <= 50_000 for piece in counting)
    assert all(piece.endswith("\n") for piece in counting[:2])


# How many there are in o200k_base, counted by bpe-openai.
COUNTED = [
    ("The quick brown fox jumps over the lazy dog. " * 40, 401),
    (json.dumps([{"name": f"item {n}", "price": n * 1.5, "ok": bool(n % 2)} for n in range(100)]), 2101),
    ("def add(left: int, right: int) -> int:\n    return left + right\n\n\n" * 20, 380),
]


def test_nothing_has_no_tokens() -> None:
    assert 0 == estimated(b"") == tokens(b"")


@pytest.mark.parametrize(("text", "count"), COUNTED, ids=["prose", "json", "code"])
def test_an_estimate_is_within_a_third(text: str, count: int) -> None:
    assert count * 2 / 3 <= estimated(text.encode()) <= count * 4 / 3


@pytest.mark.parametrize(("text", "count"), COUNTED, ids=["prose", "json", "code"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_real_tokenizer_counts_so(text: str, count: int) -> None:
    pytest.importorskip("bpe_openai", reason="the extra 'tokens' is not installed")

    assert is_exact()
    assert count == tokens(text.encode())
