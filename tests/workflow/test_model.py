"""The published schema says what the loader does."""

from __future__ import annotations

import json

import jsonschema
import pytest

from sage_sandbox.workflow.loading import inspect_text
from sage_sandbox.workflow.model import schema

OPERATION = {"type": "command", "argv": ["ls"]}
PHASE = {"id": "a", "name": "A", "operations": OPERATION}


def flow(**fields):
    return {"name": "n", "phases": [PHASE], **fields}


def operation(**fields):
    return flow(phases=[{**PHASE, "operations": {**OPERATION, **fields}}])


def test_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(schema())

    assert "https://json-schema.org/draft/2020-12/schema" == schema()["$schema"]
    # A name, and no address: nothing is published there.
    assert "urn:sage-sandbox:template" == schema()["$id"]
    json.dumps(schema())


@pytest.mark.parametrize(
    "data",
    [
        flow(),
        flow(timeout=5, description="d", parameters={"a": {"type": "integer", "default": 1}}),
        operation(
            policy={"read": ["."], "loopback": True},
            limits={"memory": "1M", "cpu": 2},
            retries=3,
            keep={"max_items": 2},
        ),
        flow(phases=[{**PHASE, "operations": [OPERATION, {"type": "python", "code": "def run(): pass"}]}]),
        {},
        [],
        flow(phases=[]),
        flow(name=""),
        flow(name=1),
        flow(zzz=1),
        flow(timeout=[]),
        flow(parameters={"1": {"type": "integer"}}),
        flow(phases=[{**PHASE, "id": "A"}]),
        flow(phases=[{**PHASE, "operations": []}]),
        flow(phases=[{**PHASE, "operations": {"type": "python"}}]),
        flow(phases=[{**PHASE, "operations": {"type": "zzz"}}]),
        operation(retries=11),
        operation(policy={"read": "."}),
        operation(argv=[]),
        operation(ok_codes=[256]),
        operation(output="xml"),
        operation(limits={"pids": 0}),
    ],
)
def test_schema_and_loader_agree(data):
    is_valid = jsonschema.Draft202012Validator(schema()).is_valid(data)

    assert is_valid == (inspect_text(json.dumps(data), "json").workflow is not None)
