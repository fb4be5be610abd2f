"""Providers and prices: of the user's environment and configuration, and of nothing else."""

from __future__ import annotations

import pytest

from sage_sandbox.errors import UsageError
from sage_sandbox.outcome import Usage
from sage_sandbox.providers import Models, Price, Provider, from_document, variable_names


@pytest.fixture
def configured(tmp_path):
    """Models of a user with this ``config.toml`` and this environment."""

    def make(text="", **environ):
        folder = tmp_path / "sage-sandbox"
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").write_text(text)
        return Models({"XDG_CONFIG_HOME": str(tmp_path), **environ})

    return make


def test_the_environment_is_enough_for_the_two_that_are_built_in(configured):
    models = configured(ANTHROPIC_API_KEY="k-1", OPENAI_API_KEY="k-2", OPENAI_BASE_URL="http://127.0.0.1:1/v1")

    assert models.provider("anthropic") == Provider("anthropic", "anthropic", "", "k-1")
    assert models.provider("openai") == Provider("openai", "openai", "http://127.0.0.1:1/v1", "k-2")
    assert Models({"XDG_CONFIG_HOME": "/nowhere", "OPENAI_API_KEY": "k"}).provider("openai").key == "k"
    assert set(variable_names()) == {"ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"}


def test_the_users_configuration_has_the_rest(configured):
    models = configured(
        """
        [models.openai]
        key = "k-2"
        at_once = 2
        [models.local]
        api = "openai"
        base_url = "http://127.0.0.1:8000/v1"
        per_second = 0.5
        """
    )

    assert models.provider("openai") == Provider("openai", "openai", "", "k-2", 2)
    assert models.provider("local") == Provider("local", "openai", "http://127.0.0.1:8000/v1", "", None, 0.5)


def test_the_key_of_a_built_in_provider_goes_to_no_other(configured):
    text = '[models.local]\napi = "openai"\nbase_url = "http://127.0.0.1:1"'

    assert configured(text, OPENAI_API_KEY="k", LOCAL_API_KEY="k").provider("local").key == ""


def test_a_provider_goes_to_the_broker_and_is_not_shown_with_its_key(configured):
    provider = configured(OPENAI_API_KEY="k-secret").provider("openai")

    assert from_document(provider.document()) == provider
    assert "k-secret" not in repr(provider)


@pytest.mark.parametrize(
    ("text", "name", "error"),
    [
        ("", "mistral", "there is no model provider mistral"),
        ("", "openai", "the model provider openai needs a key"),
        ("=", "openai", "is not TOML"),
        ("models = 1", "openai", "holds something that is no table"),
        ("[models.X]", "openai", "models names 'X'"),
        ("[models.openai]\nurl = 1", "openai", "has 'url'"),
        ("[models.x]", "x", "does not say which API it speaks"),
        ('[models.x]\napi = "grpc"', "x", "does not say which API it speaks"),
        ('[models.x]\napi = "openai"', "x", "has no base_url"),
        ('[models.x]\napi = "openai"\nbase_url = 1', "x", "base_url and key are texts"),
        ('[models.x]\napi = "openai"\nbase_url = "ftp://x"', "x", "the address of the model provider x is none"),
        (
            '[models.x]\napi = "openai"\nbase_url = "https://me:pw@x"',
            "x",
            "the address of the model provider x is none",
        ),
        ('[models.openai]\napi = "anthropic"', "openai", "speaks another API than its own"),
        ("[models.openai]\nat_once = 0", "openai", "are numbers above 0"),
        ("[models.openai]\nat_once = true", "openai", "are numbers above 0"),
        ("[models.openai]\nper_second = nan", "openai", "are numbers above 0"),
    ],
)
def test_what_is_wrong_is_said(configured, text, name, error):
    with pytest.raises(UsageError, match=error):
        configured(text).provider(name)


PRICES = '[prices."a/m"]\ninput = 3\noutput = 15.0\ncache_read = 0.3\ncache_write = 3.75'


def test_a_price_counts_each_counter_by_itself(configured):
    price = configured(PRICES).price("a/m")
    usage = Usage("a/m", "a", "m", 1_000_000, 100_000, 2_000_000, 10_000)

    assert price == Price(3.0, 15.0, 0.3, 3.75)
    assert price.of(usage) == pytest.approx(3 + 1.5 + 0.6 + 0.0375)


def test_prices_are_optional_until_a_budget_needs_them(configured):
    models = configured(PRICES)

    assert models.prices(["a/m", "a/n"], required=False).keys() == {"a/m"}
    with pytest.raises(UsageError, match="a budget of cost needs to know what a/n costs") as raised:
        models.prices(["a/m", "a/n"], required=True)
    assert '[prices."a/n"]' in raised.value.hint


@pytest.mark.parametrize(
    "text", ["input = 1", PRICES.partition("\n")[2] + "\nx = 1", PRICES.partition("\n")[2].replace("3.75", "-1")]
)
def test_a_price_has_four_numbers(configured, text):
    with pytest.raises(UsageError, match="takes four numbers from 0"):
        configured(f'[prices."a/m"]\n{text}').price("a/m")


def test_a_price_is_that_of_a_model(configured):
    with pytest.raises(UsageError, match="prices names 'claude'"):
        configured("[prices.claude]")
