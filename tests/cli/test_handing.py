"""What a saved run hands over later: beginnings of files, without what must not be seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mcp_talk import ONE, TWO, Project

from sage_sandbox import api, history
from sage_sandbox.errors import NoSuchPhase, NoSuchRun, NotGranted, StateCorrupted, Unfinished, UsageError
from sage_sandbox.handing import File, _keeps, file_text, files_left, log_lines, narrower, phases_left, resumes_at
from sage_sandbox.history import History, version_of, wait_for


@pytest.fixture
def kept(tmp_path):
    """A file among the artifacts, as a function of its content."""

    def write(content: bytes) -> str | None:
        folder = tmp_path / ".sage" / "artifacts" / "f" / "a" / "op-1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "x").write_bytes(content)
        secrets = {"API_TOKEN": "hush-hush-hush-hush"}
        return file_text(tmp_path, "f", File("a/op-1/x", len(content), ""), 1000, secrets)

    return write


def test_a_short_text_is_whole_without_secrets_and_personal_data(kept):
    assert "by [email] with [secret:known]" == kept(b"by ann@example.org with hush-hush-hush-hush")


def test_a_long_text_is_cut_and_says_nothing_across_the_cut(kept):
    assert "x" * 1000 == kept(b"x" * 50_000)
    assert "é" * 500 == kept("é".encode() * 50_000)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"text\x80text" * 10, b"a" * 100 + b"\xc3"])
def test_what_is_no_text_is_none(kept, content):
    assert kept(content) is None


def test_a_character_that_the_window_cuts_is_left_out(kept):
    assert "x" * 1000 == kept(b"x" * (1000 + (16 << 10) - 1) + "é".encode() * 10)


@pytest.fixture
def ran(world):
    """Three phases, the second of which failed."""
    from saved_runs import fail

    world.acts["b/x"] = world.acts["b/y"] = fail
    world.run()
    return world


def test_phases_that_ended_hand_over_their_kept_parts(ran):
    with History(ran.project) as runs:
        a, b = phases_left(runs, "f")
        assert ("a", "completed", ["op-1"]) == (a.id, a.status, [one.id for one in a.operations])
        assert ["error", "error"] == [one.reason for one in b.operations]
        assert "it was told to" == b.operations[0].handed.error
        assert "b" == resumes_at(runs, "f")
        assert [] == list(files_left(runs, "f"))
        with pytest.raises(NoSuchRun):
            phases_left(runs, "g")


def test_what_a_template_kept_is_forgotten_where_it_cannot_be_read_any_more(ran):
    with History(ran.project) as runs:
        definition = runs.found("f").definition
        assert {} == _keeps(replace(definition, text="no template"))
        assert {} == _keeps(replace(definition, kind="ini"))


def test_a_result_is_kept_once_more_in_fewer_bytes():
    assert "x" * 10 == narrower("x" * 10, 100)
    assert len(narrower("x" * 1000, 100)) <= 100


def test_the_log_is_of_one_feature(ran):
    assert any("phase" in line for line in log_lines(ran.project, "f"))
    with pytest.raises(NoSuchRun):
        log_lines(ran.project, "g")


def test_waiting_has_an_end_where_one_is_named(ran, monkeypatch):
    assert wait_for(ran.project, "f", timeout_s=5)
    monkeypatch.setattr(history, "is_held", lambda *_: True)
    monkeypatch.setattr(history, "ask", lambda *_, **__: None)
    assert not wait_for(ran.project, "f", timeout_s=0.01, pause=lambda _: None)


def test_each_main_file_is_another_version(ran):
    before = version_of(ran.project, "f")
    assert before == version_of(ran.project, "f")
    ran.acts.clear()
    ran.resume()

    assert before != version_of(ran.project, "f")
    assert version_of(ran.project, "g") is None


def test_an_unfinished_run_and_a_phase_that_is_not_are_errors_of_their_own(ran):
    how = api.How(project=ran.project)
    with pytest.raises(Unfinished, match="f is paused"):
        api.run_request(ran.project / "t.yaml", "f", how)
    with pytest.raises(NoSuchPhase, match="there is no phase 'z'"):
        api.resume_request("f", how, from_phase="z")


def test_a_bound_below_what_is_asked_for_is_not_granted(tmp_path):
    project = Project(tmp_path, {})
    path = project.write("reads", {**ONE, "operations": {**ONE["operations"], "policy": {"read": ["."]}}})
    from sage_sandbox.policy import Grant

    allowed = Grant("read", str(tmp_path))
    with pytest.raises(NotGranted, match=r"more than this call allows: read:\.$") as caught:
        api.run_request(path, "f", api.How(project=tmp_path, allow=(allowed,), within=()))
    assert () == caught.value.missing
    request = api.run_request(path, "f", api.How(project=tmp_path, allow=(allowed,), within=(allowed,)))
    assert [str(allowed)] == request["grants"]


def test_templates_are_found_by_name_only(tmp_path):
    project = Project(tmp_path, {})
    project.write("hello", ONE, TWO)

    assert ["hello"] == api.template_names(tmp_path)
    assert api.inspect_template("hello", tmp_path).workflow
    assert api.inspect_template({"name": "x", "phases": [ONE]}, tmp_path).workflow
    for name in ("./hello.json", "hello.json", "../x", ""):
        with pytest.raises(UsageError, match="is not the name of a template"):
            api.named_template(name, tmp_path)


def test_a_state_of_another_user_is_no_run_of_ours(world, tmp_path, monkeypatch):
    world.run()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    with History(world.project) as runs, pytest.raises(StateCorrupted, match="was not made here by this user"):
        runs.found("f")
