"""What pydantic found wrong, in the user's words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from sage_sandbox.escaping import clip
from sage_sandbox.workflow import model
from sage_sandbox.workflow.findings import Finding, Findings, did_you_mean, quote
from sage_sandbox.workflow.positions import FieldPath

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

_PATTERNS: Final = {
    model.ID_PATTERN: "must be 1 to 64 characters of a-z, 0-9 and -",
    model.PARAMETER_PATTERN: "must be a name of letters, digits, _ and -, at most 64",
    model.ENV_PATTERN: "must be the name of an environment variable",
    model.TOOL_PATTERN: "must be server/tool, or server/* for all tools of a server",
    model.PACKAGE_PATTERN: "must be the name of a distribution, such as numpy",
}
EXPECTED: Final = {
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}
"""What should have been there, by the kind of pydantic's error."""


def _names(kind: type[BaseModel]) -> tuple[str, ...]:
    """The fields of a model as a template names them."""
    return tuple(field.alias or name for name, field in kind.model_fields.items())


_FIELDS_OF: Final[dict[str, Iterable[str]]] = {
    "a phase": model.PhaseFields.model_fields,
    "the workflow": model.WorkflowFields.model_fields,
    "a python operation": model.PythonModel.model_fields,
    "a command operation": model.CommandModel.model_fields,
    "an llm operation": _names(model.LlmModel),
}
_Error = Any


def explain(error: ValidationError, checked: type[BaseModel], base: FieldPath, findings: Findings) -> None:
    """Add everything in ``error`` to the findings, ``base`` being the path of what was checked."""
    if findings.full:
        findings.skip(error.error_count())
        return
    for part in error.errors(include_url=False):
        path = _path(part["loc"])
        is_key = part["type"] == "extra_forbidden" or "[key]" in part["loc"]
        findings.add(Finding(base + path, _message(part, checked), key=is_key))


def _path(loc: tuple[str | int, ...]) -> FieldPath:
    return tuple(step for step in loc if step != "[key]")


def _message(error: _Error, checked: type[BaseModel]) -> str:
    kind, given = error["type"], error["input"]
    if kind in EXPECTED:
        return f"must be {EXPECTED[kind]}, not {name_of(given)}{_advice(kind, given)}"
    word = _WORDS.get(kind)
    if word:
        return word(error)
    if kind == "extra_forbidden":
        return _unknown_field(error["loc"], checked)
    return str(error["msg"]).replace("Input should be", "must be")


def _advice(kind: str, given: Any) -> str:
    if kind == "string_type" and isinstance(given, bool | int | float):
        return ": put it in quotes"
    return f": write [{clip(given, 40)}]" if kind in ("list_type", "tuple_type") and isinstance(given, str) else ""


def name_of(value: Any) -> str:
    """What kind of value something is: ``a list``, ``the number 3``, ``nothing``."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {clip(repr(value), 30)}" if abs(value) < 1e30 else "a huge number"
    return {"str": "text", "list": "a list", "dict": "a mapping"}.get(type(value).__name__, f"a {type(value).__name__}")


def _unknown_field(loc: tuple[str | int, ...], checked: type[BaseModel]) -> str:
    key = str(loc[-1])
    known = _fields_at(checked, loc[:-1])
    if len(loc) == 1:
        for owner, fields in _FIELDS_OF.items():
            if key in fields:
                return f"unknown field here: it belongs to {owner}"
    if close := did_you_mean(key, known):
        return f"unknown field{close}"
    return f"unknown field, known here: {', '.join(known)}"


def _fields_at(checked: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """The fields of the model at ``loc`` below ``checked``."""
    inner: dict[str, type[BaseModel]] = {
        "policy": model.PolicyModel,
        "limits": model.LimitsModel,
        "keep": model.KeepModel,
        "budgets": model.BudgetsModel,
        "parameters": model.ParameterModel,
    }
    return list(_names(inner[str(loc[0])] if loc else checked))


def _between(error: _Error) -> str:
    context = error["ctx"]
    if "min_length" in context:
        return "must not be empty"
    return f"must be at most {context['max_length']:,} long, not {len(error['input']):,}"


def _one_of(error: _Error) -> str:
    expected = error["ctx"]["expected"]
    if not isinstance(error["input"], str):
        return f"must be {expected}, not {name_of(error['input'])}"
    close = did_you_mean(error["input"], [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")])
    return f"must be {expected}, not {quote(error['input'])}{close}"


_WORDS: Final[dict[str, Callable[[_Error], str]]] = {
    "missing": lambda _: "is required",
    "string_too_short": _between,
    "string_too_long": _between,
    "too_short": _between,
    "too_long": _between,
    "literal_error": _one_of,
    "string_pattern_mismatch": lambda error: _PATTERNS[error["ctx"]["pattern"]],
    "sage": lambda error: str(error["ctx"]["message"]),
}
