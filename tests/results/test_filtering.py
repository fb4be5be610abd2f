from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.results.filtering import KEPT_BYTES, AsTheyAre, kept, selected, size
from sage_sandbox.results.personal import Cleaner
from sage_sandbox.workflow.definition import Keep

DATA: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=90), inner, max_size=30),
    max_leaves=60,
)


@given(DATA)
def test_what_there_is_room_for_is_the_value_itself(value: Any) -> None:
    if size(value) <= KEPT_BYTES:
        assert value == kept(value)


@given(DATA, st.integers(40, 400), st.none() | st.integers(1, 5))
def test_there_is_never_more_than_asked_and_it_is_json(value: Any, most: int, items: int | None) -> None:
    shown = kept(value, Keep(max_bytes=most, max_items=items))

    assert size(shown) <= most
    assert shown == json.loads(json.dumps(shown))
    assert type(shown) is type(value) or shown == "…"


@pytest.mark.parametrize(
    "value", [list(range(10_000)), {str(n): "é" * 300 for n in range(500)}, "😀" * 9000, [[["x"] * 50] * 50] * 50]
)
@pytest.mark.parametrize("most", [5, 20, 100, 2000])
def test_however_little_room_there_is_something_is_said(value: Any, most: int) -> None:
    assert size(kept(value, Keep(max_bytes=most))) <= most
    assert "…" in json.dumps(kept(value, Keep(max_bytes=most)), ensure_ascii=False)


@pytest.mark.parametrize(
    ("value", "keep", "shown"),
    [
        ({"a": 1, "b": 2}, Keep(fields=("b", "z")), {"b": 2}),
        (list(range(100)), Keep(max_items=2), [0, 1, "… 98 more"]),
        ({"a": list(range(1236))}, Keep(max_items=2), {"a": [0, 1, "… 1,234 more"]}),
        ({str(n): n for n in range(100)}, Keep(max_items=2), {str(n): n for n in range(100)}),
        ("x" * 300, None, "x" * 300),
        ("x" * 300, Keep(max_bytes=50), "x" * 24 + "… 276 more characters"),
        (None, None, None),
        ({f"k{n}": n for n in range(50)}, Keep(max_bytes=60), {"k0": 0, "k1": 1, "k2": 2, "…": "47 more"}),
        ([], Keep(max_bytes=2), []),
        (list(range(50)), Keep(max_bytes=3), "…"),
    ],
)
def test_the_kept_part_keeps_shape_and_says_what_is_left_out(value: Any, keep: Keep | None, shown: Any) -> None:
    assert shown == kept(value, keep)


def test_keys_stay_as_long_as_lists_can_give_way() -> None:
    rows = [{"hash": f"{n:040x}", "author": "somebody", "subject": "y" * 60, "files": n} for n in range(5000)]
    shown = kept({"commits": rows, "total": 5000})

    assert ["commits", "total"] == list(shown)
    assert set(rows[0]) == set(shown["commits"][0])
    assert len(shown["commits"]) > 3
    assert shown["commits"][-1].endswith(" more")
    assert size(shown) > KEPT_BYTES // 2


def test_of_a_long_text_as_much_is_kept_as_there_is_room_for() -> None:
    for text in ("x" * 100_000, "é\n" * 50_000, "\x00" * 9_000):
        shown = kept(text)

        assert KEPT_BYTES - 100 <= size(shown) <= KEPT_BYTES
        assert shown.endswith(" more characters")


def test_two_keys_that_become_the_same_are_told_apart() -> None:
    value = {"alice@example.org": 1, "bob@example.org": 2, "[email]": 3}

    assert {"[email]": 1, "[email] (2)": 2, "[email] (3)": 3} == kept(value, None, Cleaner())
    assert {"…": 1, "0": "x", "… (2)": "8 more"} == kept(
        {"…": 1, **{str(n): "x" for n in range(9)}}, Keep(max_bytes=40)
    )


def test_what_is_counted_is_what_is_shown() -> None:
    cleaner = Cleaner()
    shown = kept([{"mail": f"somebody{n}@example.org"} for n in range(5000)], None, cleaner)

    assert json.dumps(shown).count("[email]") == cleaner.found["email"]


class TestFields:
    VALUE: ClassVar[dict[str, Any]] = {
        "a": {"b": 1, "c": 2},
        "list": [{"x": 1, "y": 2}, {"x": 3}, 4],
        "a.b": "dotted",
        "n": None,
    }

    @pytest.mark.parametrize(
        ("fields", "shown"),
        [
            ((), VALUE),
            (("a",), {"a": {"b": 1, "c": 2}}),
            (("a.c",), {"a": {"c": 2}}),
            (("a.b",), {"a.b": "dotted"}),
            (("a.c", "a"), {"a": {"b": 1, "c": 2}}),
            (("list.x",), {"list": [{"x": 1}, {"x": 3}, 4]}),
            (("list.x", "n"), {"list": [{"x": 1}, {"x": 3}, 4], "n": None}),
            (("z", "a.z", "n.z"), {"a": {}, "n": None}),
        ],
    )
    def test_are_names_or_paths(self, fields: tuple[str, ...], shown: Any) -> None:
        assert shown == selected(self.VALUE, fields)

    def test_of_a_list_are_those_of_its_items(self) -> None:
        assert [{"x": 1}, {"x": 3}, 4] == selected(self.VALUE["list"], ["x"])

    def test_of_what_has_none_all_is_kept(self) -> None:
        assert 5 == kept(5, Keep(fields=("a",)))


def test_texts_as_they_are_are_cut_only() -> None:
    AsTheyAre().begin()

    assert "al" == AsTheyAre().head("alice@example.org", 2)
