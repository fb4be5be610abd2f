from __future__ import annotations

import json
import os

import pytest

from sage_sandbox.errors import DefinitionError, UsageError
from sage_sandbox.toolservers.definition import Server
from sage_sandbox.toolservers.reading import SIZE_MAX, parse_config, parse_mcp_json, read_catalog

NO_USER = "must not hold a user name: credentials belong in headers, from ${VARIABLES}"
NO_SANDBOX = "is for a server in a sandbox: without sandbox: true nothing would hold it"
NO_GRANT = "a server in a sandbox is granted read and write_through in this version, no more"
NO_PATHS = "must be a list of paths"
NO_NUL = "must not hold a NUL character"
NEVER = "opens the state of runs and is never handed to a server"


def mcp_json(**servers):
    return parse_mcp_json(json.dumps({"mcpServers": servers}).encode())


def said(catalog):
    return [f"{problem.field}: {problem.message}" for problem in catalog.problems]


def test_a_server_that_is_started():
    found = mcp_json(time={"command": "uvx", "args": ["mcp-server-time"], "env": {"TZ": "${TZ:-UTC}"}})

    assert found.servers == {"time": Server("time", ".mcp.json", "uvx", ("mcp-server-time",), (("TZ", "${TZ:-UTC}"),))}
    assert found.problems == ()


def test_a_server_that_is_called():
    found = mcp_json(docs={"type": "http", "url": "https://a.example/mcp", "headers": {"Authorization": "${T}"}})

    assert found.servers["docs"].url == "https://a.example/mcp"
    assert found.servers["docs"].headers == (("Authorization", "${T}"),)


def test_a_url_may_be_a_variable_as_a_whole():
    assert mcp_json(docs={"url": "${DOCS_URL}"}).servers["docs"].url == "${DOCS_URL}"


def test_fields_of_other_clients_are_left_out_with_a_warning():
    found = mcp_json(time={"command": "t", "disabled": False, "cwd": "/"})

    assert list(found.servers) == ["time"]
    assert said(found) == [
        "mcpServers.time.disabled: is not known here and is left out",
        "mcpServers.time.cwd: is not known here and is left out",
    ]
    assert {problem.severity for problem in found.problems} == {"warning"}


def test_no_section_is_no_server():
    assert parse_mcp_json(b"{}").servers == {}
    assert parse_config(b"other = 1").servers == {}


def test_the_config_has_the_same_fields_and_a_pace():
    found = parse_config(b'[servers.time]\ncommand = "t"\nargs = ["-v"]\nat_once = 2\nper_second = 5\n')

    assert found.servers == {"time": Server("time", ".sage/config.toml", "t", ("-v",), at_once=2, per_second=5.0)}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({}, "mcpServers.s: needs a command, or a url"),
        ({"command": "c", "url": "http://a"}, "mcpServers.s: has both command and url"),
        ([], "mcpServers.s: must be a mapping"),
        ({"command": ""}, "mcpServers.s.command: must not be empty"),
        ({"command": 5}, "mcpServers.s.command: must be a text"),
        ({"command": "c\0"}, "mcpServers.s.command: must not hold a NUL character"),
        ({"command": "c", "args": "a"}, "mcpServers.s.args: must be a list of texts"),
        ({"command": "c", "args": ["a", 1]}, "mcpServers.s.args[1]: must be a text"),
        ({"command": "c", "env": []}, "mcpServers.s.env: must be a mapping of texts by name"),
        ({"command": "c", "env": {"A": 1}}, "mcpServers.s.env.A: must be a text"),
        ({"command": "c", "env": {"A=B": "1"}}, "mcpServers.s.env.A=B: is not a name"),
        ({"command": "c", "headers": {}}, "mcpServers.s.headers: does not fit a server that is started by a command"),
        ({"url": "http://a", "env": {}}, "mcpServers.s.env: does not fit a server that is called at a url"),
        ({"url": "file:///etc/passwd"}, "mcpServers.s.url: must begin with https:// or http://"),
        ({"url": "http://[::1"}, "mcpServers.s.url: must begin with https:// or http://"),
        ({"url": "https://u:p@a"}, f"mcpServers.s.url: {NO_USER}"),
        ({"url": "http://a", "headers": {"A": "b\r\nC: d"}}, "mcpServers.s.headers.A: is not a header"),
        ({"url": "http://a", "type": "stdio"}, "mcpServers.s.type: does not fit: command is for stdio, url for http"),
        ({"url": "http://a", "type": "sse"}, "mcpServers.s.type: must be stdio or http, not sse"),
        ({"command": "c", "sandbox": "yes"}, "mcpServers.s.sandbox: must be true or false"),
        ({"url": "http://a", "sandbox": True}, "mcpServers.s.sandbox: does not fit a server that is called at a url"),
        ({"command": "c", "policy": {"read": ["a"]}}, f"mcpServers.s.policy: {NO_SANDBOX}"),
        ({"command": "c", "sandbox": True, "policy": []}, "mcpServers.s.policy: must be a mapping"),
        ({"command": "c", "sandbox": True, "policy": {"net": ["a:1"]}}, f"mcpServers.s.policy.net: {NO_GRANT}"),
        ({"command": "c", "sandbox": True, "policy": {"read": "a"}}, f"mcpServers.s.policy.read: {NO_PATHS}"),
        ({"command": "c", "sandbox": True, "policy": {"read": [""]}}, f"mcpServers.s.policy.read: {NO_PATHS}"),
        ({"command": "c", "sandbox": True, "policy": {"read": ["\0"]}}, f"mcpServers.s.policy.read: {NO_NUL}"),
        ({"command": "c", "args": ["${SAGE_STATE_KEY}"]}, f"mcpServers.s.args[0]: SAGE_STATE_KEY {NEVER}"),
        ({"url": "http://a?${SAGE_STATE_PASSPHRASE:-x}"}, f"mcpServers.s.url: SAGE_STATE_PASSPHRASE {NEVER}"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_field(about, message):
    found = mcp_json(s=about, good={"command": "g"})

    assert said(found) == [message]
    assert list(found.servers) == ["good"]


def test_a_server_in_a_sandbox_is_read_with_what_it_may_touch():
    found = mcp_json(s={"command": "c", "sandbox": True, "policy": {"read": ["a", "b"], "write_through": ["c"]}})

    assert found.problems == ()
    assert (True, ("read:a", "read:b", "write-through:c")) == (found.servers["s"].sandbox, found.servers["s"].policy)


def test_everything_that_is_wrong_is_said_at_once():
    found = mcp_json(a={"command": "", "args": [1, 2], "env": {"": "x"}}, **{"b c": {}})

    assert len(found.problems) == 5
    assert {problem.file for problem in found.problems} == {".mcp.json"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("at_once = 0", "servers.s.at_once: must be a number from 1 to 64"),
        ("at_once = true", "servers.s.at_once: must be a number from 1 to 64"),
        ("per_second = -1", "servers.s.per_second: must be a number above 0"),
        ("per_second = inf", "servers.s.per_second: must be a number above 0"),
        ("comand = 'x'", "servers.s.comand: is not known here, did you mean command?"),
    ],
)
def test_the_config_is_ours_and_is_read_strictly(text, message):
    assert said(parse_config(f"[servers.s]\ncommand = 'c'\n{text}\n".encode())) == [message]


@pytest.mark.parametrize(
    ("parse", "data", "message"),
    [
        (parse_mcp_json, b"{", ": is not JSON: Expecting property name enclosed in double quotes"),
        (parse_mcp_json, b"\xff", ": is not JSON: 'utf-8' codec"),
        (parse_mcp_json, b"[" * 100_000, ": is not JSON: maximum recursion"),
        (parse_mcp_json, b"[]", ": must be a mapping"),
        (parse_mcp_json, b'{"mcpServers": []}', "mcpServers: must be a mapping of servers by name"),
        (
            parse_mcp_json,
            b'{"mcpServers": {"a": {"command": "x", "command": "y"}}}',
            ": the key 'command' stands twice",
        ),
        (parse_config, b"=", ": is not TOML"),
        (parse_config, b"servers = 1", "servers: must be a mapping of servers by name"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem(parse, data, message):
    found = parse(data)

    assert found.servers == {}
    assert len(found.problems) == 1
    assert said(found)[0].startswith(message)


def test_there_is_an_end_to_how_many_are_read():
    found = mcp_json(**{f"s{n}": {"command": "c"} for n in range(201)})

    assert found.servers == {}
    assert said(found) == ["mcpServers: has more than 200 servers"]


# -- the files of a project ----------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    (tmp_path / ".sage").mkdir()
    (tmp_path / ".mcp.json").write_text('{"mcpServers": {"time": {"command": "t"}}}')
    (tmp_path / ".sage" / "config.toml").write_text('[servers.docs]\nurl = "https://a"\n')
    return tmp_path


def test_both_files_are_read(project):
    assert set(read_catalog(project).servers) == {"time", "docs"}


def test_a_project_without_either_has_no_servers(tmp_path):
    assert read_catalog(tmp_path).servers == {}
    assert read_catalog(tmp_path).problems == ()


def test_the_first_definition_of_a_name_counts_and_the_second_is_a_problem(project):
    (project / ".sage" / "config.toml").write_text("[servers.time]\ncommand = 'evil'\n")
    found = read_catalog(project)

    assert found.servers["time"].command == "t"
    assert said(found) == ["servers.time: .mcp.json defines it already"]


@pytest.mark.parametrize("place", [".mcp.json", ".sage/config.toml"])
def test_a_link_is_not_followed(project, place):
    path = project / place
    path.rename(project / "real")
    path.symlink_to(project / "real")

    assert said(read_catalog(project)) == [": is a symbolic link"]


@pytest.mark.parametrize("place", [".mcp.json", ".sage/config.toml"])
def test_a_pipe_in_a_files_place_hangs_nobody(project, place):
    (project / place).unlink()
    os.mkfifo(project / place)

    assert said(read_catalog(project)) == [": is not a regular file"]


@pytest.mark.parametrize("place", [".mcp.json", ".sage/config.toml"])
def test_a_huge_file_is_not_read(project, place):
    (project / place).write_bytes(b" " * (SIZE_MAX + 1))

    assert said(read_catalog(project)) == [": is larger than 1 MiB"]


def test_a_server_that_is_not_there_is_told_from_one_that_is_badly_defined(project):
    (project / ".mcp.json").write_text('{"mcpServers": {"time": {"command": "t"}, "a.b": {"command": 1, "args": [2]}}}')
    found = read_catalog(project)

    assert found.find("time").command == "t"
    with pytest.raises(UsageError, match="there is no tool server tine") as close:
        found.find("tine")
    assert close.value.hint == "did you mean time?"
    with pytest.raises(UsageError) as far:
        found.find("far")
    assert "defined in .mcp.json" in far.value.hint
    with pytest.raises(DefinitionError) as wrong:
        found.find("a.b")
    assert len(wrong.value.problems) == 2


def test_a_file_that_cannot_be_read_is_why_a_server_is_not_there(project):
    (project / ".mcp.json").write_text("{")

    with pytest.raises(DefinitionError):
        read_catalog(project).find("time")
