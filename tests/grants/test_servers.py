from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from grants_terminal import answering

from sage_sandbox.errors import NotGranted
from sage_sandbox.grants.asking_servers import ServerQuestion, ask, render, terminal_server_asker
from sage_sandbox.grants.servers import DIGESTS_KEPT, Approvals, approve_servers
from sage_sandbox.toolservers.definition import Server

TIME = Server("time", ".mcp.json", "uvx", ("mcp-server-time", "a b"), (("TZ", "${TZ:-UTC}"), ("API_KEY", "hunter2")))
HTTP = Server("docs", ".mcp.json", url="https://a/mcp", headers=(("Authorization", "Bearer ${KEY}"), ("X-Id", "7")))


@pytest.fixture
def approvals(tmp_path):
    return Approvals(tmp_path / "config" / "sage-sandbox")


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def test_nothing_is_approved_at_first_and_looking_makes_no_file(approvals, project):
    assert not approvals.holds(TIME, project)
    assert not approvals.folder.exists()


def test_what_was_approved_stays_approved(approvals, project):
    approvals.add([TIME], project)

    assert Approvals(approvals.folder).holds(TIME, project)
    assert approvals.folder.joinpath("servers.json").stat().st_mode & 0o777 == 0o600


def test_a_changed_definition_and_another_project_are_not_approved_with_it(approvals, project, tmp_path):
    approvals.add([TIME], project)
    changed = replace(TIME, args=("evil",))

    assert not approvals.holds(changed, project)
    assert approvals.knew(changed, project)
    assert not approvals.holds(TIME, tmp_path)
    assert not approvals.knew(HTTP, project)


def test_a_sandbox_and_what_it_may_touch_are_a_part_of_what_is_approved(approvals, project):
    approvals.add([TIME], project)
    approvals.add([replace(TIME, sandbox=True, policy=("read:a",))], project)

    assert approvals.holds(TIME, project)
    assert approvals.holds(replace(TIME, sandbox=True, policy=("read:a",)), project)
    assert not approvals.holds(replace(TIME, sandbox=True, policy=("read:b",)), project)
    assert not approvals.holds(replace(TIME, sandbox=True), project)


def test_a_server_in_a_sandbox_is_shown_as_that():
    text = render(ServerQuestion((replace(TIME, sandbox=True, policy=("read:a b", "write-through:\x1b[2Jc")),)))

    assert "starts, in a sandbox of its own: uvx" in text
    assert "may touch: 'read:a b'" in text
    assert "\x1b" not in text
    assert "not confined" not in text
    assert "outside a sandbox is not confined" in render(ServerQuestion((TIME,)))


def test_only_so_many_versions_are_kept_and_the_oldest_go(approvals, project):
    versions = [replace(TIME, args=(str(number),)) for number in range(DIGESTS_KEPT + 2)]
    approvals.add([HTTP], project)
    for version in versions:
        approvals.add([version], project)

    assert [approvals.holds(version, project) for version in versions] == [False] * 2 + [True] * DIGESTS_KEPT
    assert approvals.holds(HTTP, project)


def test_what_is_approved_again_is_kept_longest(approvals, project):
    versions = [replace(TIME, args=(str(number),)) for number in range(DIGESTS_KEPT)]
    for version in (*versions, versions[0], TIME):
        approvals.add([version], project)

    assert approvals.holds(versions[0], project)
    assert not approvals.holds(versions[1], project)


@pytest.mark.parametrize("servers", ["1", "[1]", '[{"name": "x"}]'])
def test_a_file_of_another_shape_approves_nothing(approvals, project, servers):
    approvals.add([TIME], project)
    (approvals.folder / "servers.json").write_text(f'{{"version": 1, "servers": {servers}}}')

    with pytest.raises(NotGranted, match="cannot be used: something in it"):
        approvals.holds(TIME, project)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}'])
def test_a_damaged_file_approves_nothing_and_is_said(approvals, project, text):
    approvals.add([TIME], project)
    (approvals.folder / "servers.json").write_text(text)

    with pytest.raises(NotGranted, match="cannot be used"):
        approvals.holds(TIME, project)


def test_a_file_that_others_may_write_approves_nothing(approvals, project):
    approvals.add([TIME], project)
    (approvals.folder / "servers.json").chmod(0o666)

    with pytest.raises(NotGranted, match="others may write") as error:
        approvals.holds(TIME, project)
    assert error.value.hint.startswith("chmod go-w")


def test_without_a_home_nothing_is_remembered(project):
    nowhere = Approvals(None)

    assert not nowhere.holds(TIME, project)
    with pytest.raises(OSError, match="no home folder"):
        nowhere.add([TIME], project)


# -- asking --------------------------------------------------------------------------------------------------------


def test_without_a_terminal_it_is_refused_with_what_to_type(approvals, project):
    with pytest.raises(NotGranted) as error:
        approve_servers([TIME, HTTP], project, approvals=approvals, ask=None)

    assert error.value.exit_code == 15
    assert error.value.missing == ("sage-sandbox tools --approve time", "sage-sandbox tools --approve docs")
    assert "sage-sandbox tools --approve time" in error.value.hint


def test_a_yes_is_remembered_and_asked_for_once(approvals, project):
    asked = []

    def yes(question):
        asked.append(question)
        return True

    assert approve_servers([TIME], project, approvals=approvals, ask=yes) == ()
    assert approve_servers([TIME], project, approvals=approvals, ask=yes) == ()
    assert asked == [ServerQuestion((TIME,))]


def test_only_what_is_not_approved_is_asked_about_and_a_change_is_said(approvals, project):
    asked = []

    def yes(question):
        asked.append(question)
        return True

    approvals.add([TIME, HTTP], project)
    changed = replace(TIME, command="evil")
    approve_servers([changed, HTTP], project, approvals=approvals, ask=yes)

    assert asked == [ServerQuestion((changed,), ("time",))]


def test_a_no_approves_nothing(approvals, project):
    with pytest.raises(NotGranted):
        approve_servers([TIME], project, approvals=approvals, ask=lambda _: False)

    assert not approvals.holds(TIME, project)


def test_a_yes_that_cannot_be_remembered_counts_this_time_and_is_said(project):
    notices = approve_servers([TIME], project, approvals=Approvals(None), ask=lambda _: True)

    assert notices == ("the approval could not be remembered: no home folder is known: set HOME or XDG_CONFIG_HOME",)


def test_the_question_shows_what_would_be_started_and_contacted():
    text = render(ServerQuestion((TIME, HTTP), ("docs",)))

    assert "starts, in the project's folder: uvx mcp-server-time 'a b'" in text
    assert "environment: TZ='${TZ:-UTC}'" in text
    assert "environment: API_KEY (its value is not shown)" in text
    assert "hunter2" not in text
    assert "calls: https://a/mcp" in text
    assert "header: Authorization: 'Bearer ${KEY}'" in text
    assert "header: X-Id (its value is not shown)" in text
    assert "takes from your environment: TZ" in text
    assert "takes from your environment: KEY" in text
    assert text.count("It has changed") == 1


def test_the_question_shows_nothing_a_terminal_would_act_on():
    evil = Server("x", ".mcp.json", "a\x1b[2J", ("\u202eb",), (("C\r", "d"),))

    text = render(ServerQuestion((evil,)))

    assert not {"\x1b", "\u202e", "\r"} & set(text)
    assert r"\x1b" in text


@pytest.mark.parametrize(("typed", "answer"), [(b"y\n", True), (b"YES\n", True), (b"\n", False), (b"yep\n", False)])
def test_anything_but_a_clear_yes_is_a_no(typed, answer):
    given, shown = answering(typed, lambda stdin, stderr: ask(ServerQuestion((TIME,)), stdin, stderr))

    assert given is answer
    assert "mcp-server-time" in shown


def test_nobody_is_asked_where_there_is_no_terminal():
    assert terminal_server_asker(io.StringIO(), io.StringIO()) is None


def test_the_record_holds_no_text_of_the_definition(approvals, project):
    approvals.add([TIME], project)

    content = json.loads((approvals.folder / "servers.json").read_text())
    assert content["servers"] == [{"project": str(project.resolve()), "name": "time", "digest": TIME.digest}]
