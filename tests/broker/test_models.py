"""Models, asked through their vendors' SDKs by a broker: what they answer, and what comes instead."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import httpx2
import pytest
from brokered import registered, threaded, wait_for
from commands import loaded_by
from model_puppet import KEY, model_puppet

from sage_sandbox.audit.log import open_audit
from sage_sandbox.broker.base import ToolRefused
from sage_sandbox.broker.prompting import _prompt
from sage_sandbox.broker.web import Note
from sage_sandbox.brokering import Needs
from sage_sandbox.disk.places import project_place
from sage_sandbox.errors import StateUnwritable
from sage_sandbox.outcome import Usage
from sage_sandbox.providers import Models, Provider

BOTH = ("anthropic/puppet", "openai/puppet")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def puppet():
    with model_puppet() as server:
        yield server


def needs_of(puppet, *providers, models=("*",), **more):
    users = Models({**os.environ, **puppet.environ})
    named = providers or (users.provider("anthropic"), users.provider("openai"))
    return Needs((), {}, models={"a/b": models}, providers=named, **more)


@pytest.fixture
def run(project, puppet):
    with threaded(project, needs=needs_of(puppet), settings={"jitter": lambda: 0.0}) as made:
        yield made


def ask(run, prompt, model="anthropic/puppet", *, operation="a/b", timeout_s=30.0, cancel_fd=-1, **more):
    request = {"prompt": prompt, "system": "", "maxTokens": 100, "schema": None, **more}
    data = json.dumps(request).encode()
    return run.client.ask_model(operation, model, data, timeout_s=timeout_s, cancel_fd=cancel_fd)


@pytest.mark.parametrize("model", BOTH)
def test_a_question_is_answered_and_what_it_took_is_counted(run, model):
    answer = ask(run, "say hello", model)

    assert (answer.ok, json.loads(answer.value)) == (True, "hello")
    assert answer.usage == (Usage(model, model.split("/")[0], "puppet-2026", 100, 20, 30, 5),)
    assert answer.usage[0].total == 155


def test_the_messages_api_is_asked_as_it_wants_to_be(run, puppet):
    ask(run, "say {}", system="be brief", schema=PERSON)
    (asked,) = puppet.asked

    assert asked.path == "/v1/messages"
    assert asked.body["system"] == "be brief"
    assert (asked.body["model"], asked.body["max_tokens"]) == ("puppet", 100)
    assert asked.body["output_config"]["format"]["type"] == "json_schema"
    assert asked.headers["accept-encoding"] == "identity"
    assert KEY in f"{asked.headers.get('authorization')} {asked.headers.get('x-api-key')}"
    assert "${" not in json.dumps(asked.body)


def test_the_completions_api_is_asked_as_it_wants_to_be(run, puppet):
    ask(run, "say {}", "openai/puppet", system="be brief", schema=PERSON)
    (asked,) = puppet.asked

    assert asked.path == "/v1/chat/completions"
    assert asked.body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "say {}"},
    ]
    assert asked.body["max_tokens"] == 100
    assert asked.body["response_format"]["json_schema"] == {"name": "answer", "schema": PERSON, "strict": True}
    assert asked.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("model", BOTH)
def test_what_calls_itself_a_stream_is_capped_like_any_answer(run, model):
    answer = ask(run, "flood", model)

    assert (answer.ok, answer.kind) == (False, "transport")
    assert "more than 17 MiB" in answer.error


@pytest.mark.parametrize("length", [480, 490, 980, 990, 3990])
@pytest.mark.parametrize("model", BOTH)
def test_no_piece_of_the_key_is_left_where_an_error_is_cut(run, model, length):
    answer = ask(run, f"long {length}", model)

    assert not answer.ok
    assert len(answer.error) <= 1000
    assert not any(KEY[:size] in answer.error for size in (4, 8, len(KEY)))


@pytest.mark.parametrize("model", BOTH)
def test_a_key_in_the_name_of_the_model_that_answered_is_replaced(run, puppet, model):
    puppet.model = f"model of {KEY}"
    (usage,) = ask(run, "say hello", model).usage

    assert "model of [secret:known]" == usage.model


def test_openai_itself_is_given_the_newer_name_of_the_limit():
    from sage_sandbox.broker.models import _OpenAI

    limits = {
        url: _OpenAI(Provider("openai", "openai", url, KEY))._limit
        for url in ("", "https://x.openai.azure.com/openai/v1", "http://127.0.0.1:1/v1", "https://notopenai.com/v1")
    }

    assert list(limits.values()) == ["max_completion_tokens", "max_completion_tokens", "max_tokens", "max_tokens"]


def test_a_schema_that_an_sdk_does_not_take_is_a_no():
    from sage_sandbox.broker.models import _Anthropic

    with pytest.raises(ToolRefused, match="cannot be asked for an answer of that schema"):
        _Anthropic(Provider("anthropic", "anthropic", "", KEY))._form({"type": "object", "properties": {"a": {}}})


def test_an_address_that_cannot_be_reached_in_time_was_sent_nothing():
    from sage_sandbox.broker.models import _by_connection

    assert not _by_connection("local", httpx2.ConnectTimeout("late"), Note()).sent
    assert _by_connection("local", httpx2.ReadError("gone"), Note()).sent


def test_a_provider_that_counts_nothing_is_estimated_and_that_is_said(run, puppet):
    puppet.counts = None
    usages = [ask(run, "say hello world", model).usage[0] for model in BOTH]

    assert [usage.measured for usage in usages] == [False, False]
    assert all(0 < usage.input < 20 and 0 < usage.output < 10 for usage in usages)


@pytest.mark.parametrize(
    "counts", [{"input": -1, "output": 1}, {"input": True, "output": 1}, {"input": 1e9, "output": "x"}]
)
def test_counters_that_are_none_are_not_believed(run, puppet, counts):
    puppet.counts = {"read": 0, "write": 0, **counts}

    assert not ask(run, "say hello").usage[0].measured


@pytest.mark.parametrize("model", BOTH)
@pytest.mark.parametrize(
    ("prompt", "kind", "error", "requests"),
    [
        ("wrong key", "tool", "answered with HTTP status 401: invalid key [secret:known]", 1),
        ("overloaded now", "transport", "answered with HTTP status 529: too much", 3),
        ("busy 3600", "transport", "answered with HTTP status 429: slow down", 1),
        ("broken now", "transport", "answered with HTTP status 500", 1),
        ("html now", "transport", "gave an answer that is none", 1),
        ("list now", "transport", "gave an answer that is none: no object", 1),
        ("empty now", "transport", "gave an answer that is none", 1),
        ("odd now", "transport", "gave an answer that is none", 1),
        ("huge now", "transport", "it answered with more than 17 MiB", 1),
        ("deep now", "transport", "nested deeper than 64", 1),
        ("hang up", "transport", "", 1),
        ("moved now", "tool", "answered with HTTP status 307", 1),
        ("refuse it", "tool", "/puppet refused: ", 1),
        ("cut short", "limit", "/puppet reached 100 tokens before its answer was whole", 1),
    ],
)
def test_what_comes_instead_of_an_answer_is_told_apart(run, puppet, model, prompt, kind, error, requests):
    answer = ask(run, prompt, model)

    assert not answer.ok
    assert (answer.kind, len(puppet.asked)) == (kind, requests)
    assert error in answer.error
    assert KEY not in answer.error
    assert json.loads(ask(run, "say still there", model).value) == "still there"


@pytest.mark.parametrize("prompt", ["refuse it", "cut short"])
@pytest.mark.parametrize("model", BOTH)
def test_an_answer_that_is_of_no_use_was_paid_for_all_the_same(run, model, prompt):
    assert ask(run, prompt, model).usage[0].total == 155


@pytest.mark.parametrize("model", BOTH)
def test_a_provider_that_asks_for_time_gets_it(run, puppet, model):
    began = time.monotonic()

    assert json.loads(ask(run, "busy 1", model).value) == "not busy any more"
    assert time.monotonic() - began >= 1.0
    assert puppet.prompts == ["busy 1", "busy 1"]
    wait_for(lambda: run.told)
    assert "again in 1.0 s: " in run.told[0].text


@pytest.mark.parametrize("model", BOTH)
def test_who_gives_up_is_hung_up_for(run, puppet, model):
    cancel = os.eventfd(0)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(ask(run, "stall now", model, cancel_fd=cancel)))
    asking.start()
    assert puppet.stalled.wait(30)
    os.eventfd_write(cancel, 1)
    asking.join(30)
    os.close(cancel)

    assert answers[0].kind == "cancelled"
    assert puppet.hung_up.wait(30)


def test_a_slow_answer_is_given_up_and_not_asked_for_again(run, puppet):
    ask(run, "say that the SDK is loaded")
    answer = ask(run, "stall now", timeout_s=2.0)

    assert (answer.kind, answer.retryable) == ("transport", True)
    assert "anthropic gave no answer in" in answer.error
    assert puppet.hung_up.wait(30)
    assert puppet.prompts == ["say that the SDK is loaded", "stall now"]


def test_nobody_at_the_address_is_asked_again_and_opens_the_breaker(project, puppet):
    nobody = Provider("local", "openai", "http://127.0.0.1:9/v1")
    with threaded(project, needs=needs_of(puppet, nobody), settings={"jitter": lambda: 0.0}) as run:
        first, second = ask(run, "say", "local/m"), ask(run, "say", "local/m")
        wait_for(lambda: any("left alone" in notice.text for notice in run.told))

    assert (first.kind, first.retryable) == ("transport", True)
    assert "model:local is not called: it failed 5 times in a row" in second.error
    assert any(notice.text.startswith("model:local is left alone for a minute") for notice in run.told)


def test_what_one_provider_broke_another_does_not_feel(project, puppet):
    with threaded(project, needs=needs_of(puppet), settings={"jitter": lambda: 0.0}) as run:
        for _ in range(5):
            ask(run, "broken now")
        assert "failed 5 times in a row" in ask(run, "say hello").error
        assert ask(run, "say hello", "openai/puppet").ok


def test_a_provider_gets_no_more_at_once_than_it_may(project, puppet):
    one = Provider("local", "openai", f"{puppet.url}/v1", at_once=1)
    with threaded(project, needs=needs_of(puppet, one)) as run:
        ask(run, "say that the SDK is loaded", "local/m")
        answers = []
        asking = threading.Thread(target=lambda: answers.append(ask(run, "stall now", "local/m", timeout_s=2.0)))
        asking.start()
        assert puppet.stalled.wait(30)
        assert ask(run, "say next", "local/m").ok
        asking.join(30)

    assert puppet.prompts[1:] == ["stall now", "say next"]
    assert puppet.asked[0].headers["authorization"] == "Bearer none"


@pytest.mark.parametrize(
    ("models", "model", "granted"),
    [
        (("*",), "openai/puppet", True),
        (("openai/*",), "openai/puppet", True),
        (("openai/puppet",), "openai/puppet", True),
        (("openai/other",), "openai/puppet", False),
        (("openai/*",), "anthropic/puppet", False),
        ((), "openai/puppet", False),
    ],
)
def test_the_broker_itself_checks_what_was_granted(project, puppet, models, model, granted):
    with threaded(project, needs=needs_of(puppet, models=models)) as run:
        answer = ask(run, "say hello", model)
        other = ask(run, "say hello", model, operation="a/c")

    assert (answer.ok, answer.kind) == ((True, "") if granted else (False, "denied"))
    assert other.error == f"{model} is not granted to a/c"
    assert len(puppet.asked) == granted


def test_a_provider_that_was_not_registered_is_not_asked(run):
    answer = ask(run, "say", "other/model")

    assert (answer.kind, answer.error) == ("denied", "there is no model provider other in this run")


@pytest.mark.parametrize("request_", [b"", b"[]", b"{}", b'{"prompt": 1}', b"[" * 100_000])
def test_what_is_no_question_is_not_put(run, puppet, request_):
    answer = run.client.ask_model("a/b", "openai/puppet", request_)

    assert answer.error == "that is no question to a model"
    assert puppet.asked == []
    assert _prompt("m", request_) is None


@pytest.mark.parametrize("model", BOTH)
def test_a_key_that_comes_back_is_taken_out(run, model):
    answer = ask(run, "key please", model)

    assert json.loads(answer.value) == "your key is [secret:known]"


def test_the_act_is_written_down_before_it_and_what_it_took_after(project, puppet):
    key = b"k" * 32
    with registered(project, needs=needs_of(puppet), audit_key=key) as run:
        assert ask(run, "say hello").ok
        assert ask(run, "say", operation="a/c").kind == "denied"
    log, _ = open_audit(project, project_place(project), key)
    log.close()
    lines = (project / ".sage" / "logs" / "audit.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]

    assert [entry["kind"] for entry in entries] == ["call", "usage", "violation"]
    assert entries[0]["text"] == "model:anthropic/puppet"
    assert entries[0]["data"] == {"operation": "a/b", "model": "anthropic/puppet", "bytes": 9, "attempt": 1}
    assert (entries[1]["data"]["input"], entries[1]["data"]["model"]) == (100, "puppet-2026")
    assert KEY not in "".join(lines)
    assert "hello" not in "".join(lines)


def test_what_cannot_be_written_down_is_not_asked(project, puppet):
    class Broken:
        async def write(self, kind, text, data):
            raise StateUnwritable("the disk is full")

        def reduce(self, kind, text, data):
            pass

        async def close(self):
            pass

    async def make(registration):
        return Broken()

    with threaded(project, needs=needs_of(puppet), settings={"make_record": make}) as run:
        answer = ask(run, "say hello")

    assert (answer.kind, answer.error) == ("transport", "the disk is full")
    assert puppet.asked == []


def test_the_key_is_in_no_environment_and_no_command_line(project, puppet):
    with registered(project, needs=needs_of(puppet), environ={**os.environ, **puppet.environ}) as run:
        assert ask(run, "say hello").ok
        if os.geteuid() == 0:
            assert KEY.encode() not in Path(f"/proc/{run.pid}/environ").read_bytes()
        assert KEY not in Path(f"/proc/{run.pid}/cmdline").read_text()
    assert KEY not in repr(needs_of(puppet))


def test_neither_coordinator_nor_worker_nor_a_broker_without_models_loads_an_sdk():
    loaded = loaded_by(
        "import sage_sandbox.api, sage_sandbox.runner, sage_sandbox.providers, sage_sandbox.operations.worker,"
        " sage_sandbox.operations.making, sage_sandbox.broker_process, sage_sandbox.broker.server"
    )

    assert not {"anthropic", "openai", "sage_sandbox.broker.models", "jsonschema"} & loaded
    assert "sage_sandbox.broker.prompting" in loaded
