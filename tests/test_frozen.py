from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.frozen import frozen


@frozen
class Many:
    """Every sort of field there is."""

    name: str
    size: int = 3
    tags: dict[str, int] = field(default_factory=dict)
    key: str = field(default="", repr=False)

    @property
    def long(self) -> bool:
        return self.size > 3


@frozen
class One:
    name: object


@frozen
class Nothing:
    pass


class Theirs:
    """What dataclasses makes of the same."""

    @dataclass(frozen=True, slots=True)
    class Many:
        name: str
        size: int = 3
        tags: dict[str, int] = field(default_factory=dict)
        key: str = field(default="", repr=False)


VALUES = st.fixed_dictionaries(
    {"name": st.text()},
    optional={"size": st.integers(), "tags": st.dictionaries(st.text(), st.integers()), "key": st.text()},
)


@given(VALUES, VALUES)
def test_a_record_is_as_dataclasses_makes_it(first: dict[str, Any], second: dict[str, Any]) -> None:
    ours, theirs = Many(**first), Theirs.Many(**first)

    assert asdict(theirs) == asdict(ours)
    assert repr(theirs) == f"Theirs.{ours!r}"
    assert (theirs == Theirs.Many(**second)) == (ours == Many(**second))
    assert asdict(replace(theirs, **second)) == asdict(replace(ours, **second))
    assert [(one.name, one.default) for one in fields(Theirs.Many)] == [(one.name, one.default) for one in fields(Many)]


@pytest.mark.parametrize("record", [Many("a", tags={"b": 1}), One("a"), One(None), One(0), Nothing()], ids=repr)
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda record: pickle.loads(pickle.dumps(record))])
def test_a_copy_is_equal(record: object, again: Callable[[object], object]) -> None:
    copied = again(record)

    assert record == copied
    assert record is not copied
    assert type(record) is type(copied)


def test_equal_records_are_one_key() -> None:
    assert {One("a"): 1} == {One("a"): 1}
    assert hash(Nothing()) == hash(Nothing())


def test_records_of_two_classes_differ() -> None:
    one: object = One("a")

    assert one != Many("a")
    assert one != "a"


def test_what_is_made_for_a_record_is_its_own() -> None:
    assert Many("a").tags is not Many("a").tags


def test_nothing_can_be_changed() -> None:
    record: Any = Many("a")

    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'name'"):
        record.name = "b"
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'other'"):
        record.other = "b"
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'name'"):
        del record.name
    assert not hasattr(record, "__dict__")


def test_a_value_too_few_or_too_many_is_an_error() -> None:
    maker: Any = Many

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
        maker()
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        maker("a", other=1)


@pytest.mark.parametrize("name", ["__init__", "__post_init__", "__repr__", "__eq__", "__hash__", "__getstate__"])
def test_a_method_that_would_be_passed_over_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="Made has a base or a method"):
        frozen(type("Made", (), {"__annotations__": {"key": str}, name: lambda self: None}))


def test_a_base_is_refused() -> None:
    with pytest.raises(TypeError, match="Made has a base or a method"):
        frozen(type("Made", (One,), {"__annotations__": {"key": str}}))


@pytest.mark.parametrize("how", [{"init": False}, {"compare": False}, {"kw_only": True}, {"hash": False}], ids=str)
def test_a_field_that_is_not_plain_is_refused(how: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"Made\.key is no plain field"):
        frozen(type("Made", (), {"__annotations__": {"key": str}, "key": field(default="", **how)}))


def test_methods_of_its_own_are_kept() -> None:
    assert Many("a", 4).long


def test_a_record_can_be_taken_apart() -> None:
    match Many("a", 4):
        case Many(name, size):
            assert ("a", 4) == (name, size)
