from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.grants.coverage import covering, covers
from sage_sandbox.policy import Grant, GrantKind

PATHS = st.lists(st.sampled_from(["a", "b", ".env", ".git", "config", "x.pem"]), max_size=4).map(
    lambda p: "/" + "/".join(p)
)
KINDS = st.sampled_from(["read", "write", "write-through"])
GRANTS = st.builds(Grant, KINDS, PATHS)


@pytest.mark.parametrize(
    ("grant", "ask"),
    [
        ("read:/p/src", "read:/p/src/a"),
        ("read:/p/src", "read:/p/src"),
        ("read:/", "read:/p"),
        ("write:/p", "read:/p/src"),
        ("write-through:/p", "read:/p"),
        ("write-through:/p", "write:/p/docs"),
        ("read:/p/.env", "read:/p/.env"),
        ("read:/p/.sage", "read:/p/.sage/templates"),
        ("env:CI", "env:CI"),
        ("loopback:", "loopback:"),
        ("net:example.org:443", "net:example.org:443"),
        ("net:*.example.org:443", "net:api.example.org:443"),
        ("net:*.example.org:443", "net:*.a.b.example.org:443"),
        ("net:[::1]:80", "net:[::1]:80"),
        ("tool:time/now", "tool:time/now"),
        ("tool:time/*", "tool:time/now"),
        ("tool:time/*", "tool:time/*"),
        ("tool:s/t", "tool:s/t"),
        ("tool:s/*", "tool:s/t"),
        ("tool:s/*", "tool:s/*"),
        ("model:a/m", "model:a/m"),
        ("model:a/*", "model:a/m"),
        ("model:*", "model:a/m"),
        ("model:*", "model:a/*"),
    ],
)
def test_a_grant_covers_what_it_holds(grant: str, ask: str) -> None:
    assert covers(_grant(grant), _grant(ask))


@pytest.mark.parametrize(
    ("grant", "ask"),
    [
        ("read:/p/src/a", "read:/p/src"),
        ("tool:time/now", "tool:time/*"),
        ("model:a/m", "model:a/*"),
        ("model:a/*", "model:ab/m"),
        ("model:a/*", "model:*"),
        ("model:a/m", "model:a/m2"),
        ("model:*", "tool:a/m"),
        ("tool:a/*", "model:a/m"),
        ("model:a/?", "model:a/b"),
        ("tool:time/n?", "tool:time/n*"),
        ("tool:time/*", "tool:times/now"),
        ("tool:time/*", "env:CI"),
        ("tool:Time/*", "tool:time/now"),
        ("read:/p/src", "read:/p/srcs"),
        ("read:/p", "write:/p"),
        ("write:/p", "write-through:/p"),
        ("read:/p", "env:/p"),
        ("env:CI", "env:C"),
        ("env:CI", "loopback:"),
        ("loopback:", "read:/"),
        ("net:*.example.org:443", "net:example.org:443"),
        ("net:*.example.org:443", "net:api.example.org:80"),
        ("net:*.example.org:443", "net:badexample.org:443"),
        ("net:api.example.org:443", "net:*.example.org:443"),
        ("net:example.org:443", "env:example.org:443"),
        ("tool:s/t", "tool:s/*"),
        ("tool:s/t", "tool:s/u"),
        ("tool:s/*", "tool:ss/t"),
        ("env:s/*", "tool:s/t"),
    ],
)
def test_a_grant_does_not_cover_more(grant: str, ask: str) -> None:
    assert not covers(_grant(grant), _grant(ask))


def test_a_server_covers_its_tools_among_others() -> None:
    held = {Grant("tool", "s/*"), Grant("tool", "u/t"), Grant("read", "/s")}

    assert [Grant("tool", "s/*")] == list(covering(Grant("tool", "s/t"), held))
    assert [] == list(covering(Grant("tool", "u/*"), held))


@pytest.mark.parametrize(
    "path", ["/p/.env", "/p/a/server.key", "/p/.sage/state", "/p/.git/config", "/p/.git/modules/m/config"]
)
@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_folder_does_not_cover_what_it_hides(kind: GrantKind, path: str) -> None:
    assert not covers(Grant(kind, "/p"), Grant("read", path))
    assert covers(Grant(kind, path), Grant("read", path))


def test_a_git_folder_does_not_cover_its_configuration() -> None:
    assert not covers(Grant("read", "/p/.git"), Grant("read", "/p/.git/config"))


@given(GRANTS, GRANTS, GRANTS)
def test_covering_is_reflexive_and_transitive(one: Grant, two: Grant, three: Grant) -> None:
    assert covers(one, one)
    if covers(one, two) and covers(two, three) and not covers(one, three):
        # only a hidden name may break the chain, and then the last step was named by the second
        assert two.value == three.value or _hidden(three.value)


@given(GRANTS, st.frozensets(GRANTS))
def test_walking_up_finds_what_comparing_each_finds(ask: Grant, held: frozenset[Grant]) -> None:
    assert {grant for grant in held if covers(grant, ask)} == set(covering(ask, held))


def _hidden(path: str) -> bool:
    return any(part in path.split("/") for part in (".env", "x.pem", "config"))


def _grant(text: str) -> Grant:
    kind, _, value = text.partition(":")
    return Grant(kind, value)  # type: ignore[arg-type]
