"""What models took, in the records of a run."""

from __future__ import annotations

import json
from dataclasses import replace

from store.stored import DEFINITION, ended

from sage_sandbox.outcome import Usage
from sage_sandbox.store.records import (
    decode_checkpoint,
    decode_definition,
    encode_checkpoint,
    encode_definition,
    status_of,
)

USAGE = Usage("a/m", "a", "m-1", 1, 2, 3, 4, times=2, measured=False)


def test_usage_is_in_the_outcomes_and_its_sum_in_the_metrics():
    made = ended("p")
    (name, outcome), *others = made.operations
    made = replace(made, operations=((name, replace(outcome, usage=(USAGE,))), *others), spent={"timeMs": 5})
    record = encode_checkpoint(made)
    read = decode_checkpoint(record, "p", 0)

    assert json.loads(record)["metrics"]["tokens"] == 10
    assert read.operations[0][1].usage == (USAGE,)
    assert (read.tokens, read.spent) == (10, {"timeMs": 5})


def test_a_checkpoint_that_says_nothing_of_it_spent_nothing():
    record = encode_checkpoint(ended("p"))

    assert "spent" not in json.loads(record)["metrics"]
    assert decode_checkpoint(record, "p", 0).spent == {}
    assert status_of("paused") == "in_progress"


def test_budgets_are_stored_with_the_definition_and_older_ones_have_none():
    made = replace(DEFINITION, budgets={"tokens": 5}, raised={"cost": 1.5})
    older = json.loads(encode_definition(made))
    del older["budgets"], older["raised"]
    read = decode_definition(encode_definition(made), "d")

    assert (read.budgets, read.raised) == ({"tokens": 5}, {"cost": 1.5})
    assert decode_definition(json.dumps(older).encode(), "d").budgets == {}
