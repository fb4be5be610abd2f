from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.toolservers.definition import Server, expand, from_document, variables_in

TIME = Server("time", ".mcp.json", "uvx", ("mcp-server-time", "--zone=${ZONE:-UTC}"), (("KEY", "${API_KEY}"),))
HTTP = Server("docs", ".mcp.json", url="https://${HOST}/mcp", headers=(("Authorization", "Bearer ${API_KEY}"),))


def test_a_digest_is_of_everything_that_decides_what_is_started_or_contacted():
    changes = [
        replace(TIME, command="uv"),
        replace(TIME, args=("mcp-server-time",)),
        replace(TIME, env=(("KEY", "${OTHER}"),)),
        replace(TIME, env=(("KEX", "${API_KEY}"),)),
        replace(TIME, name="tome"),
        replace(TIME, url="https://a"),
        replace(TIME, headers=(("A", "b"),)),
    ]

    assert len({TIME.digest, *(changed.digest for changed in changes)}) == len(changes) + 1


def test_a_digest_is_not_of_how_fast_it_is_called_nor_of_where_it_is_written():
    assert replace(TIME, source="elsewhere", at_once=9, per_second=1.0).digest == TIME.digest


def test_words_that_move_between_arguments_are_another_definition():
    one, other = replace(TIME, args=("a b",)), replace(TIME, args=("a", "b"))

    assert one.digest != other.digest


def test_variables_are_named_once_each_wherever_they_stand():
    assert TIME.variables() == ("ZONE", "API_KEY")
    assert HTTP.variables() == ("HOST", "API_KEY")


def test_only_a_name_without_default_can_be_lacking():
    assert TIME.lacking({}) == ("API_KEY",)
    assert TIME.lacking({"API_KEY": ""}) == ()


def test_expanding_puts_values_in_everywhere():
    values = {"API_KEY": "k", "HOST": "h"}

    assert TIME.expanded(values).args == ("mcp-server-time", "--zone=UTC")
    assert TIME.expanded(values).env == (("KEY", "k"),)
    assert HTTP.expanded(values).url == "https://h/mcp"
    assert HTTP.expanded(values).headers == (("Authorization", "Bearer k"),)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${A}", "1"),
        ("x${A}y${A}", "x1y1"),
        ("${B:-fall}", "fall"),
        ("${E:-fall}", "fall"),
        ("${A:-fall}", "1"),
        ("${B:-}", ""),
        ("${B}", "${B}"),
        ("$A", "$A"),
        ("$(id)", "$(id)"),
        ("`id`", "`id`"),
        ("${A[0]}", "${A[0]}"),
        ("${A:=x}", "${A:=x}"),
        ("${N}", "${A}"),
        ("${B:-${A}}", "${A}"),
    ],
)
def test_nothing_but_the_two_forms_expands_and_only_once(text, expanded):
    assert expand(text, {"A": "1", "E": "", "N": "${A}"}) == expanded


@given(st.text(), st.dictionaries(st.sampled_from(["A", "B"]), st.text(), max_size=2))
def test_text_without_variables_never_changes(text, values):
    if not variables_in(text):
        assert expand(text, values) == text


@pytest.mark.parametrize("server", [TIME, replace(HTTP, at_once=2, per_second=0.5)])
def test_a_definition_survives_the_way_to_another_process(server):
    assert from_document(json.loads(json.dumps(server.document()))) == server
