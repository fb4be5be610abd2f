from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sage_sandbox.document import (
    Metrics,
    OperationResult,
    PhaseResult,
    RunError,
    RunResult,
    document,
    metrics_document,
    outcome_document,
)
from sage_sandbox.errors import ExitCode
from sage_sandbox.events import Weight
from sage_sandbox.outcome import Artifact, Attempt, Capabilities, Contact, Outcome, Violation
from sage_sandbox.workflow.definition import Keep

FULFILLED = Outcome(
    "fulfilled",
    result=b'{"files":12}',
    stdout=b"caf\xc3\xa9 \xff",
    exit_code=0,
    duration_s=0.1204,
    cpu_s=0.05,
    max_rss=1024,
    level="full",
    capabilities=Capabilities(memory="cgroup"),
    artifacts=(Artifact("a.txt", 3, "00"),),
    written=("docs/a",),
    attempts=(Attempt("rejected", "error", "no", 0.1), Attempt("fulfilled", None, "", 0.1204)),
)
REJECTED = Outcome(
    "rejected",
    "denied",
    "no",
    "add --allow",
    violations=(Violation("read /x", "read:/x"),),
    contacts=(Contact("h", 1, "allowed", times=2, sent=3, received=4),),
)
RESULT = RunResult(
    "abc",
    "demo",
    "repo report",
    "paused",
    ExitCode.PAUSED,
    (
        PhaseResult(
            "a", "A", "failed", False, (OperationResult("x", FULFILLED), OperationResult("y", REJECTED)), 0.5, 1.0
        ),
        PhaseResult("b", "B", "blocked", True),
    ),
    Metrics(1.25, 2, 2, 1, 1, 1, 2),
    (RunError("a", "y", "denied", "no", "add --allow"),),
    "run it again",
)


def test_the_document_has_the_names_of_the_specification() -> None:
    made = document(RESULT)

    assert {"success", "workflowId", "feature", "status", "results", "errors"} <= made.keys()
    assert made["success"] is False
    assert made["results"]["metrics"] == {
        "totalTime": 1250.0,
        "restored": 0,
        "totalTokens": 0,
        "contextReloads": 0,
        "phaseCount": 2,
        "operationCount": 2,
        "fulfilled": 1,
        "rejected": 1,
        "retries": 1,
        "parallelOps": 2,
        "handedBack": {
            "bytesProduced": 0,
            "bytes": 0,
            "tokensProduced": 0,
            "tokens": 0,
            "tokensEstimated": True,
            "personal": 0,
        },
        "models": None,
        "cached": 0,
        "cacheAsked": 0,
        "cacheHitRate": None,
    }
    assert made["errors"] == [
        {"phase": "a", "operation": "y", "reason": "denied", "message": "no", "hint": "add --allow"}
    ]
    json.dumps(made)


def test_an_operation_is_shown_with_everything_that_is_known() -> None:
    fulfilled, rejected = document(RESULT, whole=True)["results"]["phases"][0]["operations"]

    assert fulfilled["result"] == {"files": 12}
    assert fulfilled["error"] is None
    assert (fulfilled["durationMs"], fulfilled["cpuMs"], fulfilled["maxRssBytes"]) == (120.4, 50.0, 1024)
    assert (fulfilled["sandboxLevel"], fulfilled["capabilities"]["memory"]) == ("full", "cgroup")
    assert [attempt["status"] for attempt in fulfilled["attempts"]] == ["rejected", "fulfilled"]
    assert fulfilled["stdout"] == "café \N{REPLACEMENT CHARACTER}"
    assert fulfilled["artifacts"] == [{"path": "a.txt", "size": 3, "sha256": "00"}]
    assert rejected["result"] is None
    assert rejected["error"] == {"reason": "denied", "message": "no", "hint": "add --allow"}
    assert rejected["violations"] == [{"what": "read /x", "allow": "read:/x"}]
    assert rejected["contacts"] == [
        {"host": "h", "port": 1, "verdict": "allowed", "why": "", "allow": "", "times": 2, "sent": 3, "received": 4}
    ]
    assert fulfilled["contacts"] == []


def test_of_a_result_the_kept_part_is_shown_without_personal_data_or_the_whole() -> None:
    outcome = Outcome("fulfilled", result=json.dumps({"mail": "a@example.org", "n": list(range(5000))}).encode())
    phase = PhaseResult("a", "A", "completed", True, (OperationResult("x", outcome),))
    result = replace(RESULT, phases=(phase,), keeps={("a", "x"): Keep(max_items=1)})
    error = RunError("a", "y", "error", "no such user: a@example.org")
    (kept,) = document(result)["results"]["phases"]
    (whole,) = document(replace(result, errors=(error,)), whole=True)["results"]["phases"]

    assert {"mail": "[email]", "n": [0, "… 4,999 more"]} == kept["operations"][0]["result"]
    assert {"mail": "[email]", "n": list(range(5000))} == whole["operations"][0]["result"]
    assert {"email": 1} == kept["operations"][0]["personal"]
    assert 0 < kept["metrics"]["tokens"] < whole["metrics"]["tokens"] / 100
    assert "no such user: [email]" == document(replace(result, errors=(error,)))["errors"][0]["message"]


def test_what_is_saved_is_the_whole() -> None:
    outcome = Outcome("fulfilled", result=b'"a@example.org"', stdout=b"a@example.org")
    document = outcome_document(outcome)

    assert ("a@example.org", "a@example.org") == (document["result"], document["stdout"])


def test_a_weight_is_said_in_bytes_and_tokens() -> None:
    made = metrics_document(Metrics(weight=Weight(1000, 100, 300, 30, exact=True, personal=2)))

    assert 30 == made["totalTokens"]
    assert {
        "bytesProduced": 1000,
        "bytes": 100,
        "tokensProduced": 300,
        "tokens": 30,
        "tokensEstimated": False,
        "personal": 2,
    } == made["handedBack"]


def test_a_phase_that_never_started_says_so() -> None:
    phase = document(RESULT)["results"]["phases"][1]

    assert (phase["status"], phase["startedMs"], phase["operations"]) == ("blocked", None, [])


def test_a_result_is_found_by_name() -> None:
    assert RESULT.outcome("a", "y") is REJECTED
    with pytest.raises(KeyError):
        RESULT.outcome("a", "z")
    with pytest.raises(KeyError):
        RESULT.phase("z")
