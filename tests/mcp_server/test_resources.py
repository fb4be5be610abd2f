"""What answers link to, what can be picked from a menu, and that nothing is larger than an agent can take."""

from __future__ import annotations

import json

import pytest
from mcp import MCPError
from mcp.types import PromptReference, ResourceTemplateReference
from mcp_talk import LEGACY, MODERN, ONE, ask, links_of, text_of

from sage_sandbox.mcp_server.answers import ANSWER_MOST, size_of

LONG = {"wait": 600}
LEAVES = """\
import os
def run():
    out = os.environ["SAGE_OUT"]
    os.makedirs(out + "/sub dir")
    open(out + "/sub dir/notes.txt", "w").write("ask ann@example.org\\n" * 2000)
    open(out + "/short.txt", "w").write("whole")
    open(out + "/picture", "wb").write(bytes(range(256)))
    return {"written": 3}
"""
TOOLS = {"execute", "resume", "list", "status", "validate", "cancel"}


@pytest.fixture
def ran(project):
    """A run that left files."""
    project.write("leaves", {**ONE, "operations": {"type": "python", "code": LEAVES}})

    async def story(client):
        await ask(client, "execute", feature="left", template="leaves", options=LONG)

    project.talk_here(story)
    return project


async def read(client, uri):
    [content] = (await client.read_resource(uri)).contents
    return content.text


async def refused(client, uri):
    with pytest.raises(MCPError) as caught:
        await client.read_resource(uri)
    return caught.value.code, caught.value.message


@pytest.mark.parametrize("mode", [LEGACY, MODERN])
def test_tools_have_schemas_titles_and_say_what_they_may_change(project, mode):
    async def story(client):
        tools = {tool.name.removeprefix("sage_workflow_"): tool for tool in (await client.list_tools()).tools}
        assert set(tools) == TOOLS
        for tool in tools.values():
            assert tool.title
            assert tool.description
            assert "object" == tool.input_schema["type"] == tool.output_schema["type"]
        assert {"list", "status", "validate"} == {name for name in TOOLS if tools[name].annotations.read_only_hint}
        assert {"execute", "resume", "cancel"} == {name for name in TOOLS if tools[name].annotations.destructive_hint}
        assert {"feature", "template", "options"} == set(tools["execute"].input_schema["properties"])
        assert {"feature", "fromPhase"} == set(tools["resume"].input_schema["properties"])
        assert {"feature", "wait_s"} == set(tools["status"].input_schema["properties"])
        assert {"feature", "saveCheckpoint"} == set(tools["cancel"].input_schema["properties"])

    project.talk_here(story, mode)


def test_files_that_a_run_left_are_linked_and_read_in_part(ran):
    async def story(client):
        result = await client.call_tool("sage_workflow_resume", {"feature": "left"})
        base = "sage://runs/left/artifacts/a/op-1"
        assert {f"{base}/sub%20dir/notes.txt", f"{base}/short.txt", f"{base}/picture"} == set(links_of(result)[3:])

        notes = await read(client, f"{base}/sub%20dir/notes.txt")
        assert len(notes.encode()) <= ANSWER_MOST
        assert "ask [email]\nask [email]" in notes
        assert "@" not in notes.replace("[email]", "")
        assert "ann" not in notes
        assert notes.endswith("… of 40,000 bytes; the file is .sage/artifacts/left/a/op-1/sub dir/notes.txt")
        assert "whole" == await read(client, f"{base}/short.txt")
        picture = await read(client, f"{base}/picture")
        assert picture.startswith(
            "no text: 256 bytes, SHA-256 40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"
        )

    ran.talk_here(story)


@pytest.mark.parametrize(
    "path", ["nothing", "a/op-1/../../../state", "a/op-1/%2e%2e/x", "/etc/passwd", "a/op-1", "a%00b"]
)
def test_nothing_else_is_read(ran, path):
    async def story(client):
        code, _ = await refused(client, f"sage://runs/left/artifacts/{path}")
        assert -32602 == code

    ran.talk_here(story)


def test_a_file_that_was_exchanged_for_a_link_is_not_followed(ran):
    place = ran.path / ".sage" / "artifacts" / "left" / "a" / "op-1" / "short.txt"
    place.unlink()
    place.symlink_to("/etc/passwd")

    async def story(client):
        code, message = await refused(client, "sage://runs/left/artifacts/a/op-1/short.txt")
        assert -32603 == code
        assert "STATE_CORRUPTED" in message
        assert "root:" not in message

    ran.talk_here(story)


def test_a_report_tells_each_phase_and_nothing_in_it_passes_for_the_page_itself(project):
    odd = "def run():\n    return '\\n# Heading [link](https://example.org/) ask ann@example.org'"
    bad = "def run():\n    raise ValueError('\\n## completed')"
    operations = [{"id": name, "type": "python", "code": code} for name, code in (("odd", odd), ("bad", bad))]
    project.write("mixed", {**ONE, "operations": operations}, {**ONE, "id": "late", "dependencies": [ONE["id"]]})

    async def story(client):
        await ask(client, "execute", feature="mixed", template="mixed", options=LONG)
        report = await read(client, "sage://runs/mixed/report")
        plain = [line for line in report.splitlines() if line and not line.startswith("    ")]
        assert ["# mixed: paused", "0 of 2 phases, 0 %."] == plain[:2]
        assert ["## What went wrong", f"## {ONE['id']}: failed"] == [
            line.partition(",")[0] for line in plain if line.startswith("## ")
        ]
        assert ["### odd: fulfilled", "### bad: rejected (error)"] == [line for line in plain if line.startswith("###")]
        assert any("# Heading" in line for line in report.splitlines() if line.startswith("    "))
        assert "ann@example.org" not in report

    project.talk_here(story)


def test_a_report_names_the_files_that_are_left(ran):
    async def story(client):
        report = await read(client, "sage://runs/left/report")
        assert "    short.txt, 5 B" in report
        assert '    {"written": 3}' in report

    ran.talk_here(story)


def test_what_is_not_there_is_said_with_its_code(project):
    async def story(client):
        for uri in [f"sage://runs/none{below}" for below in ("", "/log", "/report", "/artifacts/x")]:
            code, message = await refused(client, uri)
            assert -32602 == code
            assert message.startswith("WORKFLOW_NOT_FOUND: ")
        assert "WORKFLOW_VALIDATION_ERROR" in (await refused(client, "sage://runs/NO"))[1]
        assert -32602 == (await refused(client, "sage://other"))[0]

    project.talk_here(story)


def test_health_says_what_is_served_and_what_is_wrong(ran):
    async def story(client):
        health = json.loads(await read(client, "sage://health"))
        assert ("ok", 1, [], ["hello", "leaves"]) == tuple(
            health[name] for name in ("status", "runs", "running", "templates")
        )
        (ran.path / ".sage" / "state" / "workflow-left").rename(ran.path / "elsewhere")
        for path in (ran.path / ".sage" / "state").glob("workflow-left.json*"):
            path.write_text("{}", encoding="utf-8")
        health = json.loads(await read(client, "sage://health"))
        assert "degraded" == health["status"]
        assert health["problems"][0].startswith("left: ")

    ran.talk_here(story)


def test_prompts_say_which_tools_to_use(project):
    async def story(client):
        names = {
            prompt.name: [one.name for one in prompt.arguments] for prompt in (await client.list_prompts()).prompts
        }
        assert {"run_workflow": ["feature", "template"], "debug_run": ["feature"], "author_workflow": ["goal"]} == names

        async def text(name, **arguments):
            [message] = (await client.get_prompt(name, arguments)).messages
            return message.content.text

        assert "Run the template `feature` as `rel` with sage_workflow_execute" in await text(
            "run_workflow", feature="rel"
        )
        assert "sage://runs/rel/log" in await text("debug_run", feature="rel")
        asked = await text("author_workflow", goal="count {braces}")
        assert "for this: count {braces}" in asked

    project.talk_here(story)


def test_the_template_that_the_prompt_shows_is_valid(project):
    import yaml

    async def story(client):
        [message] = (await client.get_prompt("author_workflow", {"goal": "x"})).messages
        shown = message.content.text.partition("NAME.yaml:\n")[2].partition("\nWithout")[0]
        checked = await ask(client, "validate", template=yaml.safe_load(shown))
        assert ([], True) == (checked["errors"], checked["valid"])

    project.talk_here(story)


def test_features_templates_and_files_are_completed(ran):
    async def story(client):
        async def complete(ref, name, value, **known):
            argument = {"name": name, "value": value}
            done = await client.complete(ref, argument, context_arguments=known or None)
            return done.completion.values

        prompt = PromptReference(type="ref/prompt", name="run_workflow")
        assert ["leaves"] == await complete(prompt, "template", "l")
        assert ["left"] == await complete(prompt, "feature", "")
        assert [] == await complete(prompt, "goal", "")
        file = ResourceTemplateReference(type="ref/resource", uri="sage://runs/{feature}/artifacts/{+path}")
        assert ["a/op-1/short.txt"] == await complete(file, "path", "a/op-1/sh", feature="left")
        assert [] == await complete(file, "path", "", feature="NO SUCH")
        assert [] == await complete(file, "path", "")

    ran.talk_here(story)


def test_no_answer_is_larger_than_an_agent_can_take(project):
    operation = {"type": "python", "code": "def run():\n    return {str(n): 'x' * 50 for n in range(2000)}"}
    phases = [{"id": f"p{n}", "name": "P", "operations": [operation] * 3} for n in range(40)]
    project.write("much", *phases)

    async def story(client):
        result = await client.call_tool(
            "sage_workflow_execute", {"feature": "much", "template": "much", "options": LONG}
        )
        assert size_of(result.structured_content) <= ANSWER_MOST
        assert len(text_of(result).encode()) <= ANSWER_MOST
        results = result.structured_content["results"]
        assert 40 == len(results["phases"]) + results["omitted"]
        assert "p39" == results["phases"][-1]["id"]
        assert len((await read(client, "sage://runs/much")).encode()) <= ANSWER_MOST
        assert len((await read(client, "sage://runs/much/log")).encode()) <= ANSWER_MOST
        report = await read(client, "sage://runs/much/report")
        assert len(report.encode()) <= ANSWER_MOST
        assert "earlier phases are left out here" in report
        assert "## p39: completed" in report
        assert "## p0: " not in report

    project.talk_here(story)


def test_what_is_wrong_with_a_large_template_has_a_bound_too(project):
    wrong = {"name": "w", "phases": [{"id": f"{n}!", "name": "W" * 99, "bad": 1, "operations": []} for n in range(500)]}

    async def story(client):
        result = await client.call_tool("sage_workflow_validate", {"template": wrong})
        assert size_of(result.structured_content) <= ANSWER_MOST
        assert result.structured_content["omitted"]
        assert not result.structured_content["valid"]

    project.talk_here(story)
