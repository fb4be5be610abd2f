"""Who answers for models, and what they charge: from the environment and the *user's* ``config.toml``, no project's.

::

    [models.local]                       # further providers; anthropic and openai need no section
    api = "openai"                       # or "anthropic": which of the two they speak
    base_url = "http://127.0.0.1:8000/v1"
    key = "…"                            # optional
    at_once = 2                          # requests at a time, default 4
    per_second = 0.5                     # how many may begin in a second

    [prices."anthropic/NAME"]            # for a million tokens, in whatever currency
    input = 3.0
    output = 15.0
    cache_read = 0.3
    cache_write = 3.75
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, field
from typing import Any, Final, Literal

from sage_sandbox.disk.places import user_config
from sage_sandbox.disk.settings import CONFIG, user_settings
from sage_sandbox.errors import UsageError
from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Usage
from sage_sandbox.policy import is_model_name

MILLION: Final = 1_000_000

Api = Literal["anthropic", "openai"]
_BUILT_IN: Final[Mapping[str, Api]] = {"anthropic": "anthropic", "openai": "openai"}
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_URL: Final = re.compile(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?")
_FIELDS: Final = frozenset({"api", "base_url", "key", "at_once", "per_second"})
_COUNTERS: Final = ("input", "output", "cache_read", "cache_write")


@frozen
class Provider:
    """One provider: which API it speaks, where (empty: its SDK knows), with which key (empty: none)."""

    name: str
    api: Api
    base_url: str = ""
    key: str = field(default="", repr=False)
    at_once: int | None = None
    per_second: float | None = None

    def document(self) -> dict[str, Any]:
        """As it goes to the broker; `from_document` reads it."""
        return asdict(self)


def from_document(raw: Mapping[str, Any]) -> Provider:
    """A provider that another process of ours sent."""
    return Provider(raw["name"], raw["api"], raw["base_url"], raw["key"], raw["at_once"], raw["per_second"])


@frozen
class Price:
    """What a million tokens of one model cost, by counter."""

    input: float
    output: float
    cache_read: float
    cache_write: float

    def of(self, usage: Usage) -> float:
        """What this usage cost."""
        tokens = (getattr(usage, name) * getattr(self, name) for name in _COUNTERS)
        return float(sum(tokens)) / MILLION


def variable_names() -> tuple[str, ...]:
    """The names of the environment that providers are read from."""
    return tuple(f"{name.upper()}_{what}" for name in _BUILT_IN for what in ("API_KEY", "BASE_URL"))


class Models:
    """The user's providers and prices, read once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._path = f"{user_config(environ)}/{CONFIG}"
        config = user_settings(user_config(environ))
        self._sections = self._tables(config, "models")
        self._prices = self._tables(config, "prices")

    def provider(self, name: str) -> Provider:
        """The provider of this name; UsageError if there is none, or if it lacks something."""
        section = self._sections.get(name, {})
        api = section.get("api", _BUILT_IN.get(name))
        if api is None and name not in self._sections:
            known = ", ".join((*_BUILT_IN, *(known for known in self._sections if known not in _BUILT_IN)))
            raise UsageError(
                f"there is no model provider {name}",
                f"known: {known}; yours are sections [models.NAME] of {self._path}",
            )
        self._check(name, section, api)
        prefix = name.upper()
        own = self._environ if name in _BUILT_IN else {}
        base_url = own.get(f"{prefix}_BASE_URL") or section.get("base_url", "")
        key = own.get(f"{prefix}_API_KEY") or section.get("key", "")
        if base_url and not _URL.fullmatch(base_url):
            raise UsageError(f"the address of the model provider {name} is none", "such as https://api.example.org/v1")
        if not key and name in _BUILT_IN:
            raise UsageError(
                f"the model provider {name} needs a key",
                f"set {prefix}_API_KEY, or key below [models.{name}] in {self._path}",
            )
        return Provider(name, api, base_url, key, section.get("at_once"), section.get("per_second"))

    def prices(self, models: Iterable[str], *, required: bool) -> dict[str, Price]:
        """What these models cost, as far as the user has said so; UsageError if they have not and it is required."""
        return {model: self.price(model) for model in models if required or model in self._prices}

    def price(self, model: str) -> Price:
        """What a model costs; UsageError while the user has not said so."""
        found = self._prices.get(model)
        if found is None:
            raise UsageError(
                f"a budget of cost needs to know what {model} costs",
                f'write [prices."{model}"] with {", ".join(_COUNTERS)} (for a million tokens) in {self._path}',
            )
        if set(found) != set(_COUNTERS) or not all(_is_number(value) and value >= 0 for value in found.values()):
            text = f'{self._path}: prices."{model}" takes four numbers from 0: {", ".join(_COUNTERS)}'
            raise UsageError(text, "a counter that costs nothing is 0")
        return Price(*(float(found[name]) for name in _COUNTERS))

    def _tables(self, config: Mapping[str, Any], name: str) -> Mapping[str, Mapping[str, Any]]:
        found = config.get(name, {})
        if not isinstance(found, dict) or not all(isinstance(table, dict) for table in found.values()):
            raise UsageError(f"{self._path}: {name} holds something that is no table", f"write [{name}.NAME]")
        good = is_model_name if name == "prices" else _NAME.fullmatch
        for key in found:
            if not good(key):
                raise UsageError(f"{self._path}: {name} names {key!r}", _HINTS[name])
        return found

    def _check(self, name: str, section: Mapping[str, Any], api: object) -> None:
        where = f"{self._path}: models.{name}"
        if unknown := section.keys() - _FIELDS:
            raise UsageError(f"{where} has {min(unknown)!r}", f"known: {', '.join(sorted(_FIELDS))}")
        if api not in ("anthropic", "openai"):
            raise UsageError(f"{where} does not say which API it speaks", 'write api = "openai", or "anthropic"')
        if name in _BUILT_IN and api != name:
            raise UsageError(f"{where} speaks another API than its own", "give it another name")
        if name not in _BUILT_IN and not section.get("base_url"):
            raise UsageError(f"{where} has no base_url", 'write base_url = "https://…"')
        if not all(isinstance(section.get(text, ""), str) for text in ("base_url", "key")):
            raise UsageError(f"{where}: base_url and key are texts")
        at_once, per_second = section.get("at_once", 1), section.get("per_second", 1)
        if type(at_once) is not int or at_once < 1 or not _is_number(per_second) or per_second <= 0:
            raise UsageError(f"{where}: at_once and per_second are numbers above 0")


_HINTS: Final = {
    "models": "a provider's name is of a-z, 0-9, _ and -",
    "prices": 'a price is that of a model: [prices."provider/model"]',
}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # noqa: PLR0124 - NaN
