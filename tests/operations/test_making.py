from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sage_sandbox.errors import ReferenceMissing
from sage_sandbox.operations.base import Circumstances, Setting, idempotency_key
from sage_sandbox.operations.inputs import Results, Scope, inputs_json, phase_json
from sage_sandbox.operations.making import make_job
from sage_sandbox.outcome import Outcome, rejected
from sage_sandbox.policy import Limits, Policy
from sage_sandbox.workflow.definition import Operation, SourceFile

SETTING = Setting("run-1", "/project", "/art/feature", require_cgroup=True, environ={"CI": "yes", "HOME": "/root"})
POLICY = Policy(read=("/project",), env=("CI", "UNSET"))
HERE = Circumstances("survey", "languages", 2, POLICY, Limits(pids=3), b'{"a":1}')


def test_a_python_operation_becomes_a_job() -> None:
    operation = Operation(
        "languages",
        "python",
        params={"top": "${params.top}"},
        code="c",
        files=(SourceFile("h.py", "t"),),
        packages=("p",),
    )
    job = make_job(operation, SETTING, HERE, {"params": {"top": 3}})

    assert (job.type, job.code, job.files, job.packages) == ("python", "c", (("h.py", "t"),), ("p",))
    assert job.file == "<survey/languages>"
    assert json.loads(job.params) == {"top": 3}
    assert (job.inputs, job.policy, job.limits) == (b'{"a":1}', POLICY, Limits(pids=3))
    assert (job.project, job.artifacts, job.require_cgroup) == ("/project", "/art/feature/survey/languages", True)


def test_a_file_gives_the_code_its_name() -> None:
    assert make_job(Operation("x", "python", file="survey.py"), SETTING, HERE, {}).file == "survey.py"


def test_a_command_becomes_a_job() -> None:
    operation = Operation("log", "command", argv=("git", "log", "-n", "${params.n}"), output="lines", ok_codes=(0, 1))
    job = make_job(operation, SETTING, HERE, {"params": {"n": 5}})

    assert (job.type, job.argv, job.output, job.ok_codes) == ("command", ("git", "log", "-n", "5"), "lines", (0, 1))
    assert job.params == b"null"


def test_only_granted_names_that_are_set_travel() -> None:
    env = dict(make_job(Operation("x", "python"), SETTING, HERE, {}).env)

    assert env.pop("SAGE_IDEMPOTENCY_KEY") == idempotency_key("run-1", "survey", "languages")
    assert env == {"CI": "yes", "SAGE_ATTEMPT": "2"}


def test_the_idempotency_key_differs_by_run_phase_and_operation_only() -> None:
    keys = {idempotency_key(*names) for names in [("r", "p", "o"), ("r", "p", "x"), ("r", "x", "o"), ("x", "p", "o")]}

    assert len(keys) == 4
    assert all(len(key) == 64 for key in keys)


def test_without_an_artifacts_root_none_are_collected() -> None:
    assert make_job(Operation("x", "python"), replace(SETTING, artifacts=""), HERE, {}).artifacts == ""


def test_a_missing_path_is_reference_missing() -> None:
    with pytest.raises(ReferenceMissing, match="leads nowhere"):
        make_job(Operation("x", "python", params="${survey.nothing}"), SETTING, HERE, {"survey": {}})


def test_a_phase_result_is_the_operations_own_or_a_mapping() -> None:
    outcomes = [("a", Outcome("fulfilled", result=b"[1]")), ("b", rejected("error", "no"))]

    assert phase_json(outcomes[:1], single=True) == b"[1]"
    assert phase_json(outcomes[1:], single=True) == b"null"
    assert json.loads(phase_json(outcomes, single=False)) == {"a": [1], "b": None}
    assert json.loads(inputs_json({"p": b"[1]", "q": b"null"})) == {"p": [1], "q": None}


def test_scope_parses_what_is_asked_for_and_once() -> None:
    parsed: dict[str, object] = {}
    scope = Scope({"top": 1}, "demo", {"a": b'{"x": 2}', "bad": b"not json"}, parsed)

    assert (scope["params"], scope["feature"], scope["a"]) == ({"top": 1}, "demo", {"x": 2})
    assert scope["a"] is scope["a"]
    assert parsed == {"a": {"x": 2}}
    assert set(scope) == {"params", "feature", "a", "bad"}
    assert len(scope) == 4
    assert "bad" in scope
    assert "other" not in scope
    with pytest.raises(KeyError):
        scope["other"]


def test_a_result_is_let_go_after_its_last_reader() -> None:
    results = Results({}, "f", {"a": 2, "unread": 0})
    for name in ("a", "unread"):
        results.keep(name, [("op", Outcome("fulfilled", result=b"1"))], single=True)
    assert results.scope(["a"])["a"] == 1
    results.done(["a", "a"])

    assert results.inputs(["a"]) == b'{"a":1}'
    results.done(["a"])
    with pytest.raises(KeyError):
        results.inputs(["a"])
    with pytest.raises(KeyError):
        results.inputs(["unread"])


QUESTION = Operation("q", "llm", model="a/m", prompt="for ${params.who}", system="s", max_tokens=5, schema={"x": 1})


def test_an_llm_operation_becomes_a_question_with_its_references_filled_in() -> None:
    job = make_job(QUESTION, SETTING, HERE, {"params": {"who": [1, "é"]}})

    assert (job.type, job.model) == ("llm", "a/m")
    assert json.loads(job.params) == {"prompt": 'for [1, "é"]', "system": "s", "maxTokens": 5, "schema": {"x": 1}}
    assert (job.policy, job.limits) == (POLICY, Limits(pids=3))


@pytest.mark.parametrize(("who", "error"), [("", "left nothing of the prompt"), ("x" * (4 << 20), "larger than 4 MiB")])
def test_a_question_is_neither_empty_nor_endless(who: str, error: str) -> None:
    with pytest.raises(ReferenceMissing, match=error):
        make_job(replace(QUESTION, prompt="${params.who}"), SETTING, HERE, {"params": {"who": who}})
