"""``type: llm`` in a template: what it says, what it asks for, and what references make of it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from sage_sandbox.errors import ReferenceMissing
from sage_sandbox.policy import Policy
from sage_sandbox.workflow.changes import changed_phases
from sage_sandbox.workflow.definition import Budgets, Workflow
from sage_sandbox.workflow.loading import Report, inspect_text
from sage_sandbox.workflow.model import schema
from sage_sandbox.workflow.references import resolve_operation

QUESTION = {"type": "llm", "model": "anthropic/m", "prompt": "say", "max_tokens": 10}
ANSWER = {"type": "object", "properties": {"n": {"type": "integer"}}}


def inspect(operation: dict[str, Any], **head: Any) -> Report:
    first = {"id": "a", "name": "A", "operations": {"type": "command", "argv": ["ls"]}}
    second = {"id": "b", "name": "B", "operations": operation, "dependencies": ["a"]}
    parameters = {"who": {"type": "string", "default": "you"}}
    data = {"name": "n", "parameters": parameters, "phases": [first, second], **head}
    report = inspect_text(json.dumps(data), "json")
    fits = jsonschema.Draft202012Validator(schema()).is_valid(data)
    assert fits or report.problems
    return report


def load(operation: dict[str, Any], **head: Any) -> Workflow:
    report = inspect(operation, **head)
    assert report.workflow is not None, report.problems
    return report.workflow


def test_an_operation_asks_for_the_model_it_names() -> None:
    made = load({**QUESTION, "id": "x", "system": "brief", "schema": ANSWER, "retries": 2}).phases[1].operations[0]

    assert (made.id, made.type, made.model, made.prompt, made.system) == ("x", "llm", "anthropic/m", "say", "brief")
    assert (made.max_tokens, made.schema, made.retries) == (10, ANSWER, 2)
    assert made.policy == Policy(model=("anthropic/m",))
    assert not made.policy.repeatable


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model": "claude"}, "must be a model of a provider, as provider/model"),
        ({"model": "anthropic/*"}, "must be a model of a provider"),
        ({"model": "${params.who}/m"}, "must be a model of a provider"),
        ({"model": None}, "must be text"),
        ({"prompt": ""}, "must not be empty"),
        ({"prompt": "${b}"}, "a phase cannot refer to its own result"),
        ({"system": "${params.whom}"}, "there is no parameter 'whom'"),
        ({"max_tokens": 0}, "must be greater than or equal to 1"),
        ({"max_tokens": "10"}, "must be a whole number"),
        ({"schema": {"type": "array"}}, "an answer is an object"),
        ({"schema": []}, "must be a schema"),
        ({"policy": {}}, "unknown field here: it belongs to a python operation"),
        ({"schemas": {}}, "did you mean 'schema'?"),
        ({"base_url": "http://evil"}, "unknown field"),
        ({"api_key": "k"}, "unknown field"),
    ],
)
def test_what_is_wrong_with_it_is_said(fields: dict[str, Any], text: str) -> None:
    problems = inspect({**QUESTION, **fields}).problems

    assert any(text in problem.message for problem in problems), problems


def test_a_field_of_it_in_another_operation_is_said_to_be_its() -> None:
    problems = inspect({"type": "command", "argv": ["ls"], "max_tokens": 5}).problems

    assert "it belongs to an llm operation" in problems[0].message


def test_references_become_text_and_what_is_no_text_is_read_as_json() -> None:
    made = load({**QUESTION, "prompt": "${a} for ${params.who} $${x}", "system": "${feature}"}).phases[1].operations[0]
    filled = resolve_operation(made, {"a": {"é": [1, "${feature}"]}, "params": {"who": 3}, "feature": "f"})

    assert filled.prompt == '{"é": [1, "${feature}"]} for 3 ${x}'
    assert filled.system == "f"
    with pytest.raises(ReferenceMissing, match="leads nowhere"):
        resolve_operation(made, {"a": {}, "params": {}, "feature": "f"})


def test_references_make_no_endless_prompt() -> None:
    made = load({**QUESTION, "prompt": "${a}" * 20}).phases[1].operations[0]

    with pytest.raises(ReferenceMissing, match="more than 16 MiB"):
        resolve_operation(made, {"a": "x" * (1 << 20)})


def test_a_parameter_in_a_prompt_changes_its_phase() -> None:
    workflow = load({**QUESTION, "prompt": "for ${params.who}"})

    assert changed_phases(workflow, workflow, ["who"]) == {"b": "parameter who changed"}
    assert changed_phases(workflow, load({**QUESTION, "max_tokens": 11})).keys() == {"b"}


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ({"tokens": 5}, Budgets(tokens=5)),
        ({"cost": 1, "time": "2m"}, Budgets(cost=1.0, time_s=120.0)),
        ({}, Budgets()),
    ],
)
def test_budgets_are_read(budgets: dict[str, Any], expected: Budgets) -> None:
    assert load(QUESTION, budgets=budgets).budgets == expected


@pytest.mark.parametrize(
    ("budgets", "text"),
    [
        ({"tokens": 0}, "greater than or equal to 1"),
        ({"tokens": 1.5}, "whole number"),
        ({"cost": 0}, "greater than 0"),
        ({"time": "soon"}, "is not a duration"),
        ({"token": 5}, "did you mean 'tokens'?"),
        (5, "must be a mapping"),
    ],
)
def test_budgets_that_are_none_are_refused(budgets: Any, text: str) -> None:
    problems = inspect(QUESTION, budgets=budgets).problems

    assert any(text in problem.message for problem in problems), problems


def test_the_smaller_budget_holds_and_one_given_later_holds_instead() -> None:
    mine, theirs = Budgets(tokens=5, time_s=9.0), Budgets(tokens=3, cost=1.0)

    assert mine.held_to(theirs) == theirs.held_to(mine) == Budgets(3, 1.0, 9.0)
    assert mine.replaced_by(theirs) == Budgets(3, 1.0, 9.0)
    assert theirs.replaced_by(Budgets(tokens=7)) == Budgets(7, 1.0, None)
    assert Budgets.of({"tokens": 5, "from_a_later_version": 1}) == Budgets(tokens=5)
