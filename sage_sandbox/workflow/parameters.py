"""The parameters of a workflow: defaults held to their types, and ``--param name=text`` turned into values."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Literal

from sage_sandbox.errors import DefinitionError, UsageError
from sage_sandbox.workflow.definition import Parameter, Workflow
from sage_sandbox.workflow.findings import EnoughFound, Findings, did_you_mean, quote
from sage_sandbox.workflow.parsing import find_odd_values, read_json

ParameterType = Literal["string", "integer", "number", "boolean", "array", "object"]
_PYTHON_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_INTEGER = re.compile(r"[-+]?[0-9]{1,4000}")


def default_trouble(kind: ParameterType, value: Any) -> str:
    """Why a default is not a value of the parameter's type, or nothing."""
    fits = isinstance(value, _PYTHON_TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
    return "" if fits else f"must be of type {kind}, as the parameter is"


def resolve_params(workflow: Workflow, given: Mapping[str, str]) -> dict[str, Any]:
    """The value of every parameter, from what was typed or its default; UsageError that names all that is wrong."""
    declared = workflow.parameters
    troubles = [
        f"there is no parameter {quote(name)}{did_you_mean(name, declared)}" for name in given if name not in declared
    ]
    values: dict[str, Any] = {}
    for name, parameter in declared.items():
        try:
            values[name] = _value(parameter, given.get(name))
        except ValueError as error:
            troubles.append(f"parameter {quote(name)} {error}")
    if troubles:
        raise UsageError("; ".join(troubles), _hint(declared))
    return values


def _value(parameter: Parameter, text: str | None) -> Any:
    if text is None:
        if parameter.required:
            raise ValueError("is required")
        return parameter.default
    return _parse(parameter.type, text)


def _parse(kind: ParameterType, text: str) -> Any:
    if kind == "string":
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise ValueError("is not UTF-8")
        return text
    if kind == "boolean":
        if text not in ("true", "false"):
            raise ValueError(f"must be true or false, not {quote(text)}")
        return text == "true"
    if kind in ("array", "object"):
        return _parse_json(kind, text)
    return _parse_number(kind, text)


def _parse_number(kind: ParameterType, text: str) -> int | float:
    if _INTEGER.fullmatch(text):
        return int(text)
    try:
        number = float(text) if kind == "number" and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"must be {'an integer' if kind == 'integer' else 'a number'}, not {quote(text)}")
    return number


def _parse_json(kind: ParameterType, text: str) -> Any:
    findings = Findings()
    try:
        value = read_json(text, "", findings)
    except DefinitionError as error:
        raise ValueError(f"must be JSON: {error.problems[0].message}") from None
    with suppress(EnoughFound):
        find_odd_values(value, (), findings)
    if findings.kept:
        raise ValueError(f"must be JSON: {findings.kept[0].message}")
    if trouble := default_trouble(kind, value):
        raise ValueError(trouble)
    return value


def _hint(declared: Mapping[str, Parameter]) -> str:
    if not declared:
        return "this workflow takes no parameters"
    return f"--param NAME=VALUE, with NAME one of {', '.join(declared)}"


def typed(params: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as they would be typed: the command line's reader is the only one."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in params.items()}
