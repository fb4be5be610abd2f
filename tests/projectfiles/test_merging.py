"""What is merged with keeps every byte that it had."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.errors import UsageError
from sage_sandbox.projectfiles.merging import ENTRY, IGNORED, SERVER, SERVERS, server_in, with_ignored, with_server

NAMES = st.text(max_size=6).filter(lambda name: name not in (SERVER, SERVERS))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def files(draw):
    """A .mcp.json as people and programs lay it out, and what it says."""
    content = draw(st.dictionaries(NAMES, VALUES, max_size=3))
    if draw(st.booleans()):
        content[SERVERS] = draw(st.dictionaries(NAMES, VALUES, max_size=3))
        content["last"] = draw(VALUES)
    indent = draw(st.sampled_from([None, 0, 1, 2, 4, 8, "\t"]))
    text = json.dumps(content, indent=indent, ensure_ascii=draw(st.booleans()))
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    before, behind = draw(st.sampled_from(["", "\ufeff", "\n "])), draw(st.sampled_from(["", "\n", " \n\n"]))
    return (before + text + behind).replace("\n", newline), content


def common(one, other):
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (mine, theirs) in pairs if mine != theirs), min(len(one), len(other)))


@given(files())
def test_our_server_is_added_in_one_piece_and_nothing_else_changes(made):
    before, content = made

    after = with_server(before.encode()).decode()

    assert {**content, SERVERS: {**content.get(SERVERS, {}), SERVER: ENTRY}} == json.loads(after.removeprefix("\ufeff"))
    assert common(before, after) + common(before[::-1], after[::-1]) >= len(before)
    assert after.encode() == with_server(after.encode())
    assert ENTRY == server_in(after.encode())


def test_a_project_without_the_file_gets_one():
    assert {SERVERS: {SERVER: ENTRY}} == json.loads(with_server(None))


FOUR_SPACES = """{
    "mcpServers": {
        "a": {"url": "u"},
        "sage-sandbox": {
            "command": "sage-sandbox",
            "args": [
                "serve"
            ]
        }
    }
}
"""
ONE_LINE = '{"mcpServers": {"a": {"url": "u"}, "sage-sandbox": {"command": "sage-sandbox", "args": ["serve"]}}}'
ALONE = """{
\t"mcpServers": {
\t\t"sage-sandbox": {
\t\t\t"command": "sage-sandbox",
\t\t\t"args": [
\t\t\t\t"serve"
\t\t\t]
\t\t}
\t}
}"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{\n    "mcpServers": {\n        "a": {"url": "u"}\n    }\n}\n', FOUR_SPACES),
        ('{"mcpServers": {"a": {"url": "u"}}}', ONE_LINE),
        ('{\n\t"mcpServers": { }\n}', ALONE),
        ("{}", ALONE.replace("\t", "  ")),
    ],
    ids=["four-spaces", "one-line", "tabs-and-none-yet", "nothing-in-it"],
)
def test_our_server_is_laid_out_like_its_neighbours(before, after):
    assert after == with_server(before.encode()).decode()


def test_an_entry_of_our_name_is_left_as_it_is():
    before = b'{"mcpServers": {"sage-sandbox": {"command": "mine"}}}'

    assert before == with_server(before)
    assert {"command": "mine"} == server_in(before)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (b"", "is not JSON"),
        (b'{"mcpServers": {} // mine\n}', "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "must be a mapping"),
        (b'{"mcpServers": []}', "mcpServers must be a mapping"),
        (b'{"mcpServers": {}, "mcpServers": {}}', "the key mcpServers stands twice"),
        (b'{"mcpServers": {"sage-sandbox": 1, "sage-sandbox": 2}}', "the key sage-sandbox stands twice"),
    ],
)
def test_what_is_not_understood_is_not_written_to(before, message):
    with pytest.raises(UsageError, match=message) as caught:
        with_server(before)

    assert '"args": ["serve"]' in caught.value.hint


def test_values_that_only_some_readers_take_are_kept():
    assert b"NaN" in with_server(b'{"a": NaN}')


@pytest.mark.parametrize("before", [b"", b"*.pyc\n", b"*.pyc", b"a\r\nb\r\n", b"\xff\n"])
def test_ignored_lines_are_added_at_the_end_once(before):
    after = with_ignored(before)

    assert after.startswith(before)
    assert list(IGNORED) == [line.strip() for line in after.decode("latin-1").splitlines() if "/.sage/" in line]
    assert after == with_ignored(after)
    assert (b"\r\n" in before) == (b"\r\n" in after)


def test_an_exception_that_is_missing_is_added_alone():
    before = b"/.sage/*\n!/.sage/README.md\n!/.sage/templates/\n"

    assert before + b"!/.sage/config.toml\n!/.sage/schema/\n" == with_ignored(before)


def test_exceptions_without_what_they_are_exceptions_of_are_written_again():
    after = with_ignored(b"!/.sage/templates/\n").splitlines()

    assert after.index(b"/.sage/*") < len(after) - after[::-1].index(b"!/.sage/templates/")


def test_git_keeps_templates_and_ignores_what_runs_leave(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_bytes(with_ignored(None))
    kept = [".sage/README.md", ".sage/config.toml", ".sage/schema/template.json", ".sage/templates/t.yaml"]
    left = [".sage/state/s.json", ".sage/cache/c", ".sage/logs/audit.jsonl", ".sage/artifacts/f/p/o/x"]
    for path in (*kept, *left):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    status = ["git", "status", "--porcelain", "--untracked-files=all", "--", ".sage"]
    seen = subprocess.run(status, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert kept == sorted(line[3:] for line in seen.splitlines())
