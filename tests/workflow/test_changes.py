"""What an edited template changes of a run that has begun."""

from __future__ import annotations

from dataclasses import replace

import pytest
from workflows import flow, many, op, single

from sage_sandbox.policy import Policy
from sage_sandbox.workflow.changes import changed_phases, parameters_left
from sage_sandbox.workflow.definition import Keep, Parameter, SourceFile

A, B = single("a", code="one"), many("b", op("x"), op("y"), needs=("a",))
FLOW = flow(A, B)


def test_nothing_changed_where_nothing_did():
    assert {} == changed_phases(FLOW, FLOW)
    assert {} == changed_phases(FLOW, flow(B, A))


@pytest.mark.parametrize(
    "fields",
    [
        {"code": "two"},
        {"params": {"top": 1}},
        {"policy": Policy(read=("src",))},
        {"retries": 1},
        {"timeout_s": 5.0},
        {"files": (SourceFile("helpers.py", "x = 1"),)},
    ],
)
def test_an_operation_that_would_do_something_else_is_a_change(fields):
    changed = replace(A, operations=(replace(A.operations[0], **fields),))

    assert {"a": "its definition changed"} == changed_phases(FLOW, flow(changed, B))


@pytest.mark.parametrize("fields", [{"dependencies": ("b",)}, {"success_threshold": 1.0}, {"timeout_s": 5.0}])
def test_a_phase_that_goes_by_something_else_is_a_change(fields):
    assert {"a": "its definition changed"} == changed_phases(FLOW, flow(replace(A, **fields), B))


def test_one_operation_more_or_less_is_a_change():
    fewer = replace(B, operations=B.operations[:1])

    assert {"b": "its definition changed"} == changed_phases(FLOW, flow(A, fewer))
    assert {"b": "its definition changed"} == changed_phases(flow(A, fewer), FLOW)


def test_what_it_is_called_where_it_stands_and_what_is_shown_of_it_is_no_change():
    operation = replace(A.operations[0], line=99, keep=Keep(max_items=1))

    assert {} == changed_phases(FLOW, flow(replace(A, name="Other", operations=(operation,)), B))


def test_a_new_phase_is_new_and_one_that_is_gone_is_not_mentioned():
    assert {"b": "it is new"} == changed_phases(flow(A, single("c")), FLOW)


def test_a_parameter_that_changed_changes_the_phases_that_refer_to_it():
    after = flow(
        single("text", op_fields={"params": "n=${params.n}"}),
        single("deep", op_fields={"params": {"list": [{"x": "${params.n.0}"}]}}),
        many("argv", op("x", argv=("echo", "${params.n}"))),
        single("whole", op_fields={"params": "${params}"}),
        single("other", op_fields={"params": ["${params.m}", "$${params.n}", "${feature}", "${a.n}"]}),
        single("none"),
    )

    assert dict.fromkeys(("text", "deep", "argv", "whole"), "parameter n changed") == changed_phases(
        after, after, {"n"}
    )
    assert {"whole": "parameter k, n changed"}.items() <= changed_phases(after, after, ["n", "k"]).items()


def parameters(**defaults):
    return {name: Parameter("integer", default, required=default is None) for name, default in defaults.items()}


def test_values_that_were_given_are_left_and_defaults_are_not():
    before = flow(parameters=parameters(given=1, default=1, needed=None, dropped=1))
    after = flow(parameters=parameters(given=2, default=2, needed=None, new=2))

    left = parameters_left(before, after, {"given": 5, "default": 1, "needed": 7, "dropped": 9})

    assert {"given": 5, "needed": 7} == left
