"""The two APIs that models are asked over, each through its vendor's own SDK: the only place that imports one.

An answer is a stranger's: of its JSON what is looked for is taken, and only if it is what it should be. Nothing is cut
here: of a key that came back, a piece would be left that nobody could find any more.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping, Sequence
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from sage_sandbox.broker.base import ModelClient, Prompt, Reply, SessionLost, Silent, ToolRefused
from sage_sandbox.broker.web import NOTE, Note, look_at_whole
from sage_sandbox.providers import Provider
from sage_sandbox.workflow.answers import is_strict, with_single_types

CONNECT_S: Final = 30.0
NO_KEY: Final = "none"
"""Sent where there is no key, for both SDKs insist on one: local servers look at none."""
NOT_TAKEN_ON: Final = frozenset({429, 503, 529})
"""Too many requests, not now, overloaded: nothing was done, and asking again costs nothing twice."""
_COUNT_MAX: Final = 1_000_000_000
_NEWER_FIELD: Final = ("openai.com", "openai.azure.com")


def client_of(provider: Provider) -> ModelClient:
    """What speaks to a provider."""
    return _Anthropic(provider) if provider.api == "anthropic" else _OpenAI(provider)


def _settings(provider: Provider) -> dict[str, Any]:
    """What both SDKs are given. Retries are ours; a redirect is not followed, for the key would go with it."""
    timeout = httpx2.Timeout(None, connect=CONNECT_S)  # how long an answer may take is its operation's business
    http = httpx2.AsyncClient(
        timeout=timeout,
        event_hooks={"response": [look_at_whole]},
        headers={"accept-encoding": "identity"},  # a few bytes could become many
        follow_redirects=False,
    )
    return {
        "api_key": provider.key or NO_KEY,
        "base_url": provider.base_url or None,
        "max_retries": 0,
        "timeout": timeout,
        "http_client": http,
        "default_headers": {"accept-encoding": "identity"},
    }


class _Anthropic:
    """The Messages API."""

    def __init__(self, provider: Provider) -> None:
        import anthropic

        self._name = provider.name
        self._sdk = anthropic
        self._client = anthropic.AsyncAnthropic(**_settings(provider), open_telemetry=False)

    async def ask(self, prompt: Prompt) -> Reply:
        """The answer to one question. SessionLost, ToolRefused."""
        more: dict[str, Any] = {"system": prompt.system} if prompt.system else {}
        if prompt.schema is not None:
            more["output_config"] = {"format": {"type": "json_schema", "schema": self._form(prompt.schema)}}
        asking = self._client.messages.with_raw_response.create(
            model=prompt.model,
            max_tokens=prompt.max_tokens,
            messages=[{"role": "user", "content": prompt.text}],
            **more,
        )
        return _message(self._name, await _answered(self._sdk, self._name, asking))

    def _form(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """A schema as this API takes it: what it cannot hold a model to becomes words of a description."""
        try:
            return self._sdk.transform_schema(with_single_types(schema))
        except (ValueError, AssertionError) as error:
            raise ToolRefused(f"{self._name} cannot be asked for an answer of that schema: {error}") from error

    async def close(self) -> None:
        """Let go of its connections."""
        await self._client.close()


def _message(name: str, answer: Mapping[str, Any]) -> Reply:
    blocks = answer.get("content")
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise _none(name, "no content")
    texts = [block.get("text") for block in blocks if block.get("type") == "text"]
    if not all(isinstance(text, str) for text in texts):
        raise _none(name, "a text that is none")
    stop = answer.get("stop_reason")
    counts = _counts(
        answer.get("usage"), "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"
    )
    return Reply(
        text="".join(map(str, texts)),
        model=_text(answer.get("model")),
        counts=counts,
        is_cut=stop in ("max_tokens", "model_context_window_exceeded"),
        refusal=_text(_within(answer, "stop_details", "explanation")) or "no reason given" if stop == "refusal" else "",
    )


class _OpenAI:
    """The Chat Completions API, which others serve, too."""

    def __init__(self, provider: Provider) -> None:
        import openai

        self._name = provider.name
        self._sdk = openai
        self._client = openai.AsyncOpenAI(**_settings(provider))

    async def ask(self, prompt: Prompt) -> Reply:
        """The answer to one question. SessionLost, ToolRefused."""
        messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
        more: dict[str, Any] = {self._limit: prompt.max_tokens}
        if prompt.schema is not None:
            form = {"name": "answer", "schema": dict(prompt.schema), "strict": is_strict(prompt.schema)}
            more["response_format"] = {"type": "json_schema", "json_schema": form}
        asking = self._client.chat.completions.with_raw_response.create(
            model=prompt.model,
            messages=[*messages, {"role": "user", "content": prompt.text}],  # type: ignore[list-item]  # two of its kinds
            **more,
        )
        return _completion(self._name, await _answered(self._sdk, self._name, asking))

    async def close(self) -> None:
        """Let go of its connections."""
        await self._client.close()

    @property
    def _limit(self) -> str:
        """The field for the longest answer: OpenAI's own models refuse the older one, other servers know no other."""
        host = urlsplit(str(self._client.base_url)).hostname or ""
        newer = any(host == domain or host.endswith(f".{domain}") for domain in _NEWER_FIELD)
        return "max_completion_tokens" if newer else "max_tokens"


def _completion(name: str, answer: Mapping[str, Any]) -> Reply:
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = _within(choice, "message")
    if not isinstance(message, dict) or not isinstance(message.get("content"), str | None):
        raise _none(name, "no message")
    stop = _within(choice, "finish_reason")
    refusal = _text(message.get("refusal")) or ("by its content filter" if stop == "content_filter" else "")
    return Reply(
        text=message.get("content") or "",
        model=_text(answer.get("model")),
        counts=_disjoint(answer.get("usage")),
        is_cut=stop == "length",
        refusal=refusal,
    )


def _disjoint(usage: object) -> tuple[int, int, int, int] | None:
    """Input, output, cache-read, cache-write: this API counts the two last ones within the first, too."""
    counts = _counts(usage, "prompt_tokens", "completion_tokens")
    if counts is None:
        return None
    read, written = (
        _count(_within(usage, "prompt_tokens_details", name)) or 0 for name in ("cached_tokens", "cache_write_tokens")
    )
    return max(counts[0] - read - written, 0), counts[1], read, written


async def _answered(sdk: ModuleType, name: str, asking: Awaitable[Any]) -> Mapping[str, Any]:
    """Wait for the JSON object of an answer; what keeps it from coming is told from a no."""
    note = Note()
    token = NOTE.set(note)
    try:
        response = await asking
        found = json.loads(response.http_response.content)
    except sdk.APIStatusError as error:
        raise _by_status(name, error.status_code, _words(error.body), note) from error
    except sdk.APIConnectionError as error:
        raise _by_connection(name, error.__cause__ or error, note) from error
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        raise _by_connection(name, error, note) from error
    except (sdk.APIError, ValueError, RecursionError) as error:
        raise _none(name, str(error)) from error
    finally:
        NOTE.reset(token)
    if not isinstance(found, dict):
        raise _none(name, "no object")
    return found


def _by_status(name: str, status: int, words: str, note: Note) -> Exception:
    text = f"{name} answered with HTTP status {status}" + (f": {words}" if words else "")
    if status in {408, 429} or status >= 500:
        return SessionLost(text, sent=status not in NOT_TAKEN_ON, asked_s=note.asked_s)
    return ToolRefused(text)


def _by_connection(name: str, cause: BaseException, note: Note) -> SessionLost:
    sent = not isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout)
    if isinstance(cause, httpx2.TimeoutException):
        return Silent(f"{name} could not be reached in {CONNECT_S:.0f} s", sent=sent)
    words = note.broke or " ".join(str(cause).split()) or type(cause).__name__
    return SessionLost(f"{name}: {words}", sent=sent)


def _none(name: str, why: str) -> SessionLost:
    return SessionLost(f"{name} gave an answer that is none: {' '.join(why.split())}", sent=True)


def _words(body: object) -> str:
    """What a provider says of an error, if it says it as both APIs do."""
    found = _within(body, "error", "message") or _within(body, "message")
    return " ".join(found.split()) if isinstance(found, str) else ""


def _within(value: object, *names: str) -> Any:
    """What lies below these names, or None."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _counts(usage: object, *names: str) -> tuple[int, int, int, int] | None:
    """Up to four counters by their names, the others 0; None where the first two are not there."""
    found = [_count(_within(usage, name)) for name in names]
    if None in found[:2]:
        return None
    return _four([count or 0 for count in found])


def _four(counts: Sequence[int]) -> tuple[int, int, int, int]:
    first, second, third, fourth = (*counts, 0, 0)[:4]
    return first, second, third, fourth


def _count(value: object) -> int | None:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _COUNT_MAX
    return value if good else None  # type: ignore[return-value]  # an int, then
