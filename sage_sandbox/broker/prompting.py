"""One question to a model, from its grant to its answer: written down, queued, guarded, tried again where that is safe.

What a question costs is charged for each time it is taken on. So it is put again only if it was never sent, or if the
provider says that it did nothing with it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

from sage_sandbox.broker.answers import Answers, Found, ask_age, tell_age
from sage_sandbox.broker.base import (
    MakeClient,
    ModelClient,
    Prompt,
    Reply,
    SessionLost,
    Silent,
    Sleep,
    ToolRefused,
)
from sage_sandbox.broker.calling import CALL_MAX_S, ERROR_WIDTH, QUEUE_S, Record
from sage_sandbox.broker.runs import Registration, Run
from sage_sandbox.errors import BreakerOpen, SageError
from sage_sandbox.escaping import clip
from sage_sandbox.frozen import frozen
from sage_sandbox.guards.breaker import Breaker, Transition
from sage_sandbox.guards.retry import Failed, retried
from sage_sandbox.guards.throttle import AT_ONCE, Throttle
from sage_sandbox.outcome import Usage
from sage_sandbox.policy import RESULT_MAX, format_size
from sage_sandbox.providers import Provider
from sage_sandbox.results.scrub import Scrubber
from sage_sandbox.results.spellings import SHORTEST
from sage_sandbox.results.tokens import tokens
from sage_sandbox.sandbox.calls import Answer
from sage_sandbox.workflow.answers import mismatch

NAME_WIDTH: Final = 128
CLOSE_S: Final = 2.0


def make_client(provider: Provider) -> ModelClient:
    """What speaks to a provider; its SDK is loaded for the first one, which takes a second."""
    from sage_sandbox.broker.models import client_of

    return client_of(provider)


class _Service:
    """One provider, for all runs: its breaker and its throttle."""

    def __init__(self, provider: Provider, listener: Callable[[Transition], None], clock: Callable[[], float]) -> None:
        self.breaker = Breaker(service_name(provider.name), clock=clock, listener=listener)
        self.throttle = Throttle(provider.at_once or AT_ONCE, per_s=provider.per_second)


def service_name(provider: str) -> str:
    """What a provider's breaker is called; no tool server can be called that."""
    return f"model:{provider}"


@frozen
class _Question:
    """A question to a model, as far as its answer hangs on it."""

    operation: str
    provider: Provider
    prompt: Prompt

    def parts(self, _registration: Registration) -> Mapping[str, Any]:
        """As `answers.Asking` says."""
        who = self.provider
        return {"provider": [who.name, who.api, who.base_url, who.key], "prompt": asdict(self.prompt)}


@dataclass(eq=False, slots=True)
class _Asked:
    """What is to be asked, for whom, and until when."""

    run: Run
    operation: str
    model: str
    provider: Provider
    prompt: Prompt
    until: float


class Prompting:
    """Puts the questions of all runs."""

    def __init__(
        self,
        records: Mapping[Run, Record],
        answers: Mapping[Run, Answers],
        tell: Callable[[Transition], None],
        *,
        make: MakeClient = make_client,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        sleep: Sleep,
    ) -> None:
        self._records = records
        self._answers = answers
        self._tell = tell
        self._make = make
        self._clock = clock
        self._jitter = jitter
        self._sleep = sleep
        self._services: dict[tuple[str, str, str], _Service] = {}
        self._clients: dict[tuple[str, str], ModelClient] = {}
        self._making = asyncio.Lock()

    async def ask(self, run: Run, operation: str, model: str, request: bytes, timeout_s: float) -> Answer:
        """Ask a model for an operation, if it was granted that; whatever happens is an Answer."""
        if not run.may_ask(operation, model):
            data = {"operation": operation, "model": model}
            self._records[run].reduce("violation", f"{operation} asked {model}", data)
            return Answer(ok=False, error=f"{model} is not granted to {operation}", kind="denied")
        name, _, below = model.partition("/")
        provider, prompt = run.providers.get(name), _prompt(below, request)
        if provider is None:
            return Answer(ok=False, error=f"there is no model provider {name} in this run", kind="denied")
        if prompt is None:
            return Answer(ok=False, error="that is no question to a model", kind="tool")
        timeout_s = min(max(timeout_s, 0.0), CALL_MAX_S)
        asked = _Asked(run, operation, model, provider, prompt, self._clock() + timeout_s)
        return _without_key(await self._answer(asked, timeout_s), provider)

    async def leave(self, run: Run) -> None:
        """A run has ended: let go of the connections that were its own."""
        mine = [key for key in self._clients if key[0] == run.registration.token]
        for client in [self._clients.pop(key) for key in mine]:
            with suppress(Exception):  # whatever its end looks like, it costs nobody anything
                async with asyncio.timeout(CLOSE_S):
                    await client.close()

    # -- inside --------------------------------------------------------------------------------------------------

    async def _answer(self, asked: _Asked, timeout_s: float) -> Answer:
        patience = asyncio.timeout(timeout_s + QUEUE_S)
        try:
            async with patience:
                return await self._answered(asked)
        except (ToolRefused, SessionLost, BreakerOpen, SageError) as error:
            return _failure(error)
        except TimeoutError:
            if not patience.expired():
                raise
            text = f"{asked.model} waited {timeout_s:.0f} s for its turn"
            return Answer(ok=False, error=text, kind="transport", retryable=True)

    async def _answered(self, asked: _Asked) -> Answer:
        """Ask, unless an answer of before makes that needless; where the provider is unavailable one may stand in."""
        answers = self._answers.get(asked.run)
        if answers is None:
            return await self._judgement(asked)
        question = _Question(asked.operation, asked.provider, asked.prompt)
        if (found := await answers.first(question)) is not None:
            return await self._from_before(asked, found, unavailable=False)
        try:
            answer = await self._judgement(asked)
        except (SessionLost, BreakerOpen):
            service = service_name(asked.provider.name)
            found = await answers.instead(question)
            if found is None or not await answers.allowed(service, partial(ask_age, asked.run, service, found)):
                raise
            given = await self._from_before(asked, found, unavailable=True)
            tell_age(asked.run, service, found, answers.said)
            return given
        if answer.ok and _fits(answer, asked.prompt):
            answers.keep(question, answer.value, read_only=True)
        return answer

    async def _from_before(self, asked: _Asked, found: Found, *, unavailable: bool) -> Answer:
        data = {"operation": asked.operation, "model": asked.model, "ageMs": round(found.age_s * 1000),
                "unavailable": unavailable}  # fmt: skip
        await self._records[asked.run].write("cached", f"model:{asked.model}", data)
        return Answer(ok=True, value=found.value, cached_s=found.age_s, unavailable=unavailable)

    async def _judgement(self, asked: _Asked) -> Answer:
        """Ask, and say what the answer is good for."""
        reply = _cleaned(await self._done(asked), asked.provider)
        usage = _usage(asked, reply)
        if record := self._records.get(asked.run):  # none: it has gone meanwhile
            data = {"operation": asked.operation, **asdict(usage)}
            record.reduce("usage", f"{asked.model}: {usage.total:,} tokens", data)
        return _judged(asked, reply, usage)

    async def _done(self, asked: _Asked) -> Reply:
        def may_repeat(error: Exception) -> bool:
            return isinstance(error, SessionLost) and not error.sent and self._clock() < asked.until

        return await retried(
            lambda number: self._tried(asked, number),
            may_repeat=may_repeat,
            record=lambda failed: _tell_failure(asked, failed),
            asked_s=lambda error: error.asked_s if isinstance(error, SessionLost) else None,
            jitter=self._jitter,
            sleep=self._sleep,
        )

    async def _tried(self, asked: _Asked, number: int) -> Reply:
        service = self._service(asked.provider)
        async with service.throttle.turn():
            permit = service.breaker.admit()
            try:
                client = await self._client(asked)
                await self._write_down(asked, number)
                reply = await self._within_time(client, asked)
            except ToolRefused:
                permit.succeeded()  # it answered
                raise
            except SessionLost as error:
                permit.failed(str(_without_key(_failure(error), asked.provider).error))
                raise
            except BaseException:
                permit.withdrawn()
                raise
            permit.succeeded()
            return reply

    async def _within_time(self, client: ModelClient, asked: _Asked) -> Reply:
        left_s = max(asked.until - self._clock(), 0.0)
        patience = asyncio.timeout(left_s)
        try:
            async with patience:
                return await client.ask(asked.prompt)
        except TimeoutError:
            if not patience.expired():
                raise
            raise Silent(f"{asked.provider.name} gave no answer in {left_s:.0f} s", sent=True) from None

    def _service(self, provider: Provider) -> _Service:
        key = (provider.name, provider.api, provider.base_url)
        if key not in self._services:
            self._services[key] = _Service(provider, self._tell, self._clock)
        return self._services[key]

    async def _client(self, asked: _Asked) -> ModelClient:
        key = (asked.run.registration.token, asked.provider.name)
        async with self._making:
            if key not in self._clients:
                # Not here: everybody else would wait for the SDK to be loaded.
                self._clients[key] = await asyncio.to_thread(self._make, asked.provider)
            return self._clients[key]

    async def _write_down(self, asked: _Asked, number: int) -> None:
        size = len(asked.prompt.text.encode()) + len(asked.prompt.system.encode())
        data = {"operation": asked.operation, "model": asked.model, "bytes": size, "attempt": number}
        await self._records[asked.run].write("call", f"model:{asked.model}", data)


def _prompt(model: str, request: bytes) -> Prompt | None:
    """What a worker sent as a question, if it is one."""
    try:
        match json.loads(request):
            case {"prompt": str(text), "system": str(system), "maxTokens": int(most), "schema": None | dict() as form}:
                return Prompt(model, text, system, most, form)
    except (ValueError, RecursionError):
        pass
    return None


def _usage(asked: _Asked, reply: Reply) -> Usage:
    """What was counted; where the provider says nothing of that, about as much."""
    counts = reply.counts
    if counts is None:
        read = tokens(f"{asked.prompt.system}\n{asked.prompt.text}".encode("utf-8", "replace"))
        counts = (read, tokens(reply.text.encode("utf-8", "replace")), 0, 0)
    answered = clip(reply.model, NAME_WIDTH)
    return Usage(asked.model, asked.provider.name, answered, *counts, measured=reply.counts is not None)


def _judged(asked: _Asked, reply: Reply, usage: Usage) -> Answer:
    """What an answer is good for; whatever it is, it was paid for."""
    if reply.refusal:
        text = clip(f"{asked.model} refused: {reply.refusal}", ERROR_WIDTH)
        return Answer(ok=False, error=text, kind="tool", usage=(usage,))
    if reply.is_cut:
        text = f"{asked.model} reached {asked.prompt.max_tokens:,} tokens before its answer was whole"
        return Answer(ok=False, error=text, kind="limit", usage=(usage,))
    value = json.dumps(reply.text, ensure_ascii=False).encode("utf-8", "replace")
    if len(value) > RESULT_MAX:
        text = f"{asked.model} answered with more than {format_size(RESULT_MAX)}"
        return Answer(ok=False, error=text, kind="tool", usage=(usage,))
    return Answer(ok=True, value=value, usage=(usage,))


def _failure(error: Exception) -> Answer:
    """What an error is as an answer; `_without_key` cuts its text."""
    text = " ".join(str(error).split())
    if isinstance(error, ToolRefused):
        return Answer(ok=False, error=text, kind="tool")
    return Answer(ok=False, error=text, kind="transport", retryable=isinstance(error, SessionLost | BreakerOpen))


def _fits(answer: Answer, prompt: Prompt) -> bool:
    """Whether an answer is as its schema says: another one is not asked for again before it is old."""
    if prompt.schema is None:
        return True
    try:
        return not mismatch(json.loads(json.loads(answer.value)), prompt.schema)
    except (ValueError, RecursionError):
        return False


def _without_key(answer: Answer, provider: Provider) -> Answer:
    """The answer with the provider's key in nothing it says, should that have come back; then its error is cut."""
    scrubber = _scrubber(provider)
    value, error = scrubber.json(answer.value)[0], scrubber.text(answer.error)[0]
    return replace(answer, value=value, error=clip(error, ERROR_WIDTH))


def _cleaned(reply: Reply, provider: Provider) -> Reply:
    """A reply of which the short texts, too, may be written down."""
    scrubber = _scrubber(provider)
    return replace(reply, model=scrubber.text(reply.model)[0], refusal=scrubber.text(reply.refusal)[0])


def _scrubber(provider: Provider) -> Scrubber:
    return Scrubber((provider.key,) if len(provider.key.strip()) >= SHORTEST else ())


def _tell_failure(asked: _Asked, failed: Failed) -> None:
    if failed.wait_s is not None:
        error = _without_key(_failure(failed.error), asked.provider).error
        asked.run.tell(
            {
                "event": "attempt",
                "operation": asked.operation,
                "tool": asked.model,
                "number": failed.number,
                "error": error,
                "waitS": round(failed.wait_s, 3),
            }
        )
