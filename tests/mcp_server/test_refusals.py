"""Every error code, as the text that a model reads: what happened, and what to do next."""

from __future__ import annotations

import errno
import os

import pytest
from mcp_talk import LEGACY, MODERN, ONE, TWO, ask, refused, text_of

from sage_sandbox import detached
from sage_sandbox.control import asking
from sage_sandbox.control.asking import NotAnswering, NotCancelled
from sage_sandbox.detached import Refused
from sage_sandbox.errors import BreakerOpen, ExitCode, Locked, SageError, StateUnwritable
from sage_sandbox.grants.servers import Approvals
from sage_sandbox.history import History
from sage_sandbox.mcp_server.refusals import TEXT_MOST, Call, Refusal, refusal
from sage_sandbox.policy import Grant
from sage_sandbox.toolservers.reading import read_catalog

LONG = {"wait": 600}


@pytest.mark.parametrize("mode", [LEGACY, MODERN])
def test_what_is_refused_before_anything_runs_has_its_code_and_a_way_on(project, mode):
    project.write("cycle", {**ONE, "dependencies": ["b"]}, TWO)
    project.write("wrong", {**ONE, "id": "A!"})
    project.write("asks", {**ONE, "operations": {**ONE["operations"], "policy": {"read": ["."]}}})

    async def story(client):
        async def said(tool, **arguments):
            code, _, text = (await refused(client, tool, **arguments)).partition(": ")
            assert "\nhint: " in text
            return code, text

        code, text = await said("execute", feature="x", template="cycle")
        assert "CYCLE_DETECTED" == code
        assert "a → b → a" in text
        code, text = await said("execute", feature="x", template="wrong")
        assert "WORKFLOW_VALIDATION_ERROR" == code
        assert "phases[0].id" in text
        code, text = await said("execute", feature="x", template="nothing")
        assert "WORKFLOW_VALIDATION_ERROR" == code
        assert "known here: asks, cycle, hello, wrong" in text
        code, text = await said("execute", feature="x", template="asks")
        assert "NOT_GRANTED" == code
        assert "--allow read:.\nhint: only your user can, in a terminal in the project: sage-sandbox run asks x" in text
        assert "NO_CHECKPOINT_FOUND" == (await said("resume", feature="x"))[0]
        assert "WORKFLOW_NOT_FOUND" == (await said("status", feature="x"))[0]
        assert "WORKFLOW_NOT_FOUND" == (await said("cancel", feature="x"))[0]

    project.talk_here(story, mode)


@pytest.mark.parametrize(
    "name", ["../t", "/etc/passwd", "t.yaml", ".sage/templates/hello.json", "", "a b", "hello.json"]
)
def test_a_template_is_named_and_never_pointed_at(project, name):
    async def story(client):
        for tool in ("execute", "validate"):
            feature = {"feature": "x"} if tool == "execute" else {}
            text = await refused(client, tool, template=name, **feature)
            assert text.startswith("WORKFLOW_VALIDATION_ERROR: ")
            assert "is not the name of a template" in text

    project.talk_here(story)


@pytest.mark.parametrize("feature", ["../x", "X", "", "a/b", "-a", "a" * 65, "a\n"])
def test_a_feature_is_a_name_and_no_path(project, feature):
    async def story(client):
        for tool in ("execute", "resume", "status", "cancel"):
            text = await refused(client, tool, feature=feature)
            assert text.startswith("WORKFLOW_VALIDATION_ERROR: ")
            assert "is not a feature name" in text

    project.talk_here(story)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("execute", {"template": "hello", "params": {"whom": "x"}}),
        ("resume", {"frm": "a"}),
        ("status", {"waitS": 5}),
        ("cancel", {"save": False}),
    ],
)
def test_an_argument_that_a_tool_does_not_have_is_refused_and_nothing_is_done(project, tool, arguments):
    async def story(client):
        text = await refused(client, tool, feature="one", **arguments)
        assert text.startswith(f"WORKFLOW_VALIDATION_ERROR: {next(name for name in arguments if name != 'template')}: ")
        assert text.endswith(f"hint: tools/list says what sage_workflow_{tool} takes")
        assert [] == (await ask(client, "list"))["workflows"]

    project.talk_here(story)


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("execute", {}, "feature: is missing"),
        ("status", {"feature": 3}, "feature: must be text, not the number 3"),
        ("status", {"feature": "a", "wait_s": "soon"}, "wait_s: must be a number, not text"),
        ("status", {"feature": "a", "wait_s": -1}, "wait_s: must be greater than or equal to 0"),
        ("status", {"feature": "a", "wait": 1}, "wait: unknown here, did you mean 'wait_s'?"),
        ("validate", {"template": 3}, "template: must be text or a mapping, not the number 3"),
        ("list", {"filter": "over"}, "filter: must be 'running', 'paused', 'completed', 'failed' or 'cancelled'"),
        ("execute", {"feature": "a", "options": 3}, "options: must be a mapping, not the number 3"),
        (
            "execute",
            {"feature": "a", "options": {"alow": ["x"], "allow": ["x", 1]}},
            "options.allow.1: must be text, not the number 1; options.alow: unknown here, did you mean 'allow'?",
        ),
        (
            "list",
            {f"a{number}": 1 for number in range(12)},
            "; ".join(f"a{number}: unknown here" for number in range(10)) + "; and 2 more",
        ),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_in_our_words(project, tool, arguments, said):
    async def story(client):
        text = await refused(client, tool, **arguments)
        assert f"WORKFLOW_VALIDATION_ERROR: {said}\nhint: tools/list says what sage_workflow_{tool} takes" == text

    project.talk_here(story)


def test_a_parameter_that_is_missing_is_for_the_user_to_set(project):
    project.write("greet", ONE, parameters={"whom": {"type": "string"}})

    async def story(client):
        text = await refused(client, "execute", feature="one", template="greet")
        assert "parameter 'whom' is required" in text
        assert "in a terminal: sage-sandbox run greet one --param" in text

    project.talk_here(story)


def test_allow_narrows_what_the_user_allowed_and_never_widens_it(project):
    (project.path / "src").mkdir()
    reads = {**ONE, "operations": {**ONE["operations"], "policy": {"read": ["src"]}}}
    template = project.write("reads", reads)

    async def story(client):
        async def run(allow, feature):
            options = {**LONG, "allow": allow}
            return await client.call_tool(
                "sage_workflow_execute", {"feature": feature, "template": "reads", "options": options}
            )

        assert "NOT_GRANTED" in text_of(await run(["read:src", "read:."], "x"))  # not its to give
        project.allow(template, Grant("read", str(project.path / "src")))
        refusal = text_of(await run([], "x"))
        assert "NOT_GRANTED: the workflow needs more than this call allows: read:src" in refusal
        assert "sage-sandbox" not in refusal  # nothing that the user could do
        assert "a grant with ! is your user's to give" in text_of(await run(["read!:src"], "x"))
        assert "WORKFLOW_VALIDATION_ERROR" in text_of(await run(["nonsense"], "x"))
        assert not (await run(["read:."], "x")).is_error

    project.talk_here(story)


def test_a_run_whose_time_is_over_is_an_error_with_all_there_is_of_it(project):
    project.gated("late", ONE)

    async def story(client):
        arguments = {"feature": "late", "template": "late", "options": {**LONG, "timeout": 3000}}
        result = await client.call_tool("sage_workflow_execute", arguments)
        assert result.is_error
        assert text_of(result).startswith("TIMEOUT_EXCEEDED: ")
        assert "sage_workflow_resume(feature='late')" in text_of(result)
        assert ("paused", False) == (result.structured_content["status"], result.structured_content["success"])

        text = await refused(client, "execute", feature="late", template="late")
        assert text.startswith("WORKFLOW_VALIDATION_ERROR: late is paused: ")
        assert "sage_workflow_resume(feature='late')" in text
        text = await refused(client, "resume", feature="late", fromPhase="nowhere")
        assert text.startswith("INVALID_PHASE: ")
        assert "its phases are wait, a" in text

    project.talk_here(story)


def test_a_service_that_is_down_is_an_external_failure(project):
    (project.path / ".mcp.json").write_text('{"mcpServers": {"down": {"command": "/bin/false"}}}', encoding="utf-8")
    operation = {"type": "mcp", "tool": "down/anything"}
    template = project.write("calls", {"id": "call", "name": "Call", "operations": operation})
    project.allow(template, Grant("tool", "down/anything"))

    async def story(client):
        text = await refused(client, "execute", feature="x", template="calls", options=LONG)
        assert text.startswith("NOT_GRANTED: down: this tool server is not approved")
        assert "sage-sandbox tools --approve down" in text
        Approvals.of_user(project.environ).add([read_catalog(project.path).find("down")], project.path)
        text = await refused(client, "execute", feature="x", template="calls", options=LONG)
        assert text.startswith("EXTERNAL_API_FAILURE: call/op-1: ")
        assert "when the service is back: sage_workflow_resume(feature='x')" in text

    project.talk_here(story)


def test_a_failed_operation_is_a_result_and_no_error_of_the_tool(project):
    failing = {
        "type": "python",
        "code": "import sys\ndef run():\n    print('why', file=sys.stderr)\n    raise ValueError('no')",
    }
    project.write("fails", {**ONE, "operations": failing})

    async def story(client):
        document = await ask(client, "execute", feature="x", template="fails", options=LONG)
        assert ("failed", False) == (document["status"], document["success"])
        assert ["a", "op-1", "error"] == [document["errors"][0][name] for name in ("phase", "operation", "reason")]
        [operation] = document["results"]["phases"][0]["operations"]
        assert "rejected" == operation["status"]
        assert "why" in operation["stderr"]

    project.talk_here(story)


def test_a_run_that_goes_on_is_not_started_again_and_not_resumed(project):
    project.gated()

    async def story(client):
        await ask(client, "execute", feature="x", template="gated", options={"wait": 0})
        for tool, more in (("execute", {"template": "gated"}), ("resume", {})):
            text = await refused(client, tool, feature="x", **more)
            assert text.startswith("WORKFLOW_VALIDATION_ERROR: ")
            assert "sage_workflow_status(feature='x', wait_s=60)" in text
        await ask(client, "cancel", feature="x", saveCheckpoint=False)
        text = await refused(client, "cancel", feature="x")
        assert text.startswith("WORKFLOW_NOT_RUNNING: x is not running (its status is cancelled)")

    project.talk_here(story)


def test_state_that_is_damaged_says_so_in_every_tool(project):
    async def story(client):
        await ask(client, "execute", feature="x", template="hello", options=LONG)
        for path in (project.path / ".sage" / "state").rglob("workflow-x*"):
            if path.suffix in (".json", ".bak"):
                path.write_bytes(path.read_bytes()[:-20])
        for path in (project.path / ".sage" / "state" / "workflow-x").iterdir():
            path.write_bytes(path.read_bytes()[:-20])
        for tool in ("execute", "resume", "status", "cancel"):
            more = {"template": "hello"} if tool == "execute" else {}
            assert (await refused(client, tool, feature="x", **more)).startswith("STATE_CORRUPTED: ")
        listed = await ask(client, "list", filter="paused")
        assert ["x"] == [run["feature"] for run in listed["unreadable"]]

    project.talk_here(story)


def test_a_checkpoint_that_was_not_saved_is_said(project, monkeypatch):
    async def story(client):
        for saved, status in ((False, "cancelled"), (True, "completed")):
            done = asking.Cancelled("x", status, "2026-01-31T10:00:00.000Z", saved)
            monkeypatch.setattr(asking, "cancel", lambda *_, done=done, **__: done)
            text = await refused(client, "cancel", feature="x")
            assert text.startswith("CHECKPOINT_SAVE_FAILED: " if not saved else "WORKFLOW_NOT_RUNNING: x had ended")

    project.talk_here(story)


def test_a_disk_that_refuses_is_a_filesystem_error(project, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), ".sage/state")

    monkeypatch.setattr(History, "all", refuse)

    async def story(client):
        text = await refused(client, "list")
        assert text.startswith("FILESYSTEM_ERROR: Permission denied: .sage/state\nhint: ")

    project.talk_here(story)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("FILESYSTEM_ERROR", StateUnwritable("no room")),
        ("CHECKPOINT_SAVE_FAILED", NotAnswering("it sleeps", "wake it")),
        ("CHECKPOINT_SAVE_FAILED", NotCancelled("f was not cancelled: the run ended without a result")),
        ("EXTERNAL_API_FAILURE", BreakerOpen("left alone", "", 12.4)),
        ("WORKFLOW_VALIDATION_ERROR", Locked("held", "", "pid 1")),
        ("WORKFLOW_VALIDATION_ERROR", SageError("something else")),
        ("NOT_GRANTED", Refused("not allowed", "", ExitCode.NOT_GRANTED)),
        ("WORKFLOW_VALIDATION_ERROR", Refused("held", "", ExitCode.LOCKED)),
        ("STATE_CORRUPTED", Refused("another key", "", ExitCode.WRONG_KEY)),
        ("WORKFLOW_VALIDATION_ERROR", Refused("no sandbox", "", ExitCode.SANDBOX_UNAVAILABLE)),
    ],
)
def test_errors_have_the_code_of_their_nearest_class(code, error):
    told = refusal(error, Call("f"))

    assert code == told.code
    assert told.message == error.message
    assert told.hint


def test_a_refusal_has_a_bound_and_nothing_that_a_terminal_acts_on():
    text = Refusal("CYCLE_DETECTED", "\x1b[2J" + "x" * 10_000, "y" * 10_000).text()

    assert "\x1b" not in text
    assert len(text) <= 2 * TEXT_MOST


def test_the_process_of_a_run_that_does_not_begin_says_why(project, monkeypatch):
    def launch(*_, **__):
        raise Refused("the template changed while the run was being started", "start it again", ExitCode.USAGE)

    monkeypatch.setattr(detached, "launch", launch)

    async def story(client):
        text = await refused(client, "execute", feature="x", template="hello")
        assert (
            "WORKFLOW_VALIDATION_ERROR: the template changed while the run was being started\nhint: start it again"
            == text
        )

    project.talk_here(story)
