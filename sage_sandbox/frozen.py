"""Frozen records that cost little to define.

For ``@dataclass(frozen=True, slots=True)`` six functions are compiled, which takes a third of a millisecond. Before it
does anything a run defines more than a hundred such classes, and a worker most of them again: so here only ``__init__``
is compiled, and the others are the same functions for all.
"""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from typing import Any, Final, NoReturn, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """As ``@dataclass(frozen=True, slots=True)``, for a class without a base or methods of those names.

    Its fields are plain: each is a parameter, compared and hashed. TypeError for any other, which would be passed over.
    """
    if cls.__bases__ != (object,) or vars(cls).keys() & {"__init__", "__post_init__", *_COMMON}:
        raise TypeError(f"{cls.__qualname__} has a base or a method that a plain record has not: use dataclass")
    made: Any = dataclass(init=False, repr=False, eq=False, slots=True)(cls)
    names = made.__match_args__
    # Of one name, attrgetter gives no tuple.
    made.values_ = attrgetter(*names) if len(names) > 1 else _Values(names)
    made.__init__ = _initializer(made)
    for name in _COMMON:
        setattr(made, name, _Record.__dict__[name])
    return made  # type: ignore[no-any-return]


def _initializer(cls: Any) -> Any:
    """``__init__`` as dataclasses writes it: to compile it is the only way to give it the fields for parameters."""
    known: dict[str, Any] = {"_set": object.__setattr__, "_absent": _ABSENT}
    parameters, body = ["self"], ["pass"]
    for one in fields(cls):
        if not (one.init and one.compare) or one.kw_only or one.hash is not None:
            raise TypeError(f"{cls.__qualname__}.{one.name} is no plain field: use dataclass")
        name = value = parameter = one.name
        if one.default is not MISSING:
            known[f"_{name}"] = one.default
            parameter = f"{name}=_{name}"
        elif one.default_factory is not MISSING:
            known[f"_{name}"] = one.default_factory
            parameter = f"{name}=_absent"
            value = f"_{name}() if {name} is _absent else {name}"
        parameters.append(parameter)
        body.append(f"_set(self, {name!r}, {value})")
    exec(f"def __init__({', '.join(parameters)}):\n " + "\n ".join(body), known)  # noqa: S102 - names of our own fields
    return known["__init__"]


class _Values:
    """The values of a record's fields."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def __call__(self, record: object) -> tuple[Any, ...]:
        return tuple(getattr(record, name) for name in self._names)


class _Record:
    """The methods that all have in common."""

    values_: Any

    def __repr__(self) -> str:
        shown = (f"{one.name}={getattr(self, one.name)!r}" for one in fields(self) if one.repr)  # type: ignore[arg-type]
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        return bool(self.values_(self) == self.values_(other)) if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.values_(self))

    def __setattr__(self, name: str, _: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __getstate__(self) -> Any:
        return self.values_(self)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        for name, value in zip(self.__match_args__, state, strict=True):  # type: ignore[attr-defined]
            object.__setattr__(self, name, value)


_ABSENT: Final = object()
_COMMON: Final = ("__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__getstate__", "__setstate__")
