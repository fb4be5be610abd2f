"""The suite's fixtures that ask the client: in the older protocol by a request, in the newer by what they answer."""

from __future__ import annotations

import json
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp_types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequest,
    InputRequiredResult,
    ListRootsRequest,
    ListRootsResult,
    SamplingMessage,
    TextContent,
)
from pydantic import BaseModel, Field


class Answer(BaseModel):
    response: str


class Defaults(BaseModel):
    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: str = Field("active", json_schema_extra={"enum": ["active", "inactive", "pending"]})
    verified: bool = True


class Choices(BaseModel):
    untitledSingle: str = Field(json_schema_extra={"enum": ["option1", "option2", "option3"]})  # noqa: N815
    titledSingle: str = Field(json_schema_extra={"oneOf": [{"const": "value1", "title": "First"}]})  # noqa: N815
    legacyEnum: str = Field(json_schema_extra={"enum": ["opt1"], "enumNames": ["Option One"]})  # noqa: N815
    untitledMulti: list[str] = Field(  # noqa: N815
        json_schema_extra={"items": {"type": "string", "enum": ["option1", "option2"]}}
    )
    titledMulti: list[str] = Field(  # noqa: N815
        json_schema_extra={"items": {"anyOf": [{"const": "value1", "title": "First"}]}}
    )


def question(message: str, **properties: str) -> ElicitRequest:
    """A form with fields of these types."""
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in properties.items()},
        "required": list(properties),
    }
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def _prompting(text: str) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=text))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=50))


def _content(response: Any, name: str) -> Any:
    return (response.content or {}).get(name) if isinstance(response, ElicitResult) else None


def add_asking(server: MCPServer) -> None:
    """Add them to a server."""
    _add_requests(server)
    _add_questions(server)
    _add_rounds(server)
    _add_longer_rounds(server)

    @server.prompt()
    async def test_input_required_result_prompt(ctx: Context) -> list[UserMessage] | InputRequiredResult:
        """A prompt that asks first."""
        if said := _content((ctx.input_responses or {}).get("user_context"), "context"):
            return [UserMessage(TextContent(type="text", text=f"In this context: {said}"))]
        return InputRequiredResult(input_requests={"user_context": question("Which context?", context="string")})


def _add_requests(server: MCPServer) -> None:
    """2025-11-25: a request to the client within a call."""

    @server.tool()
    async def test_sampling(prompt: str, ctx: Context) -> str:
        """What the client's model says."""
        message = SamplingMessage(role="user", content=TextContent(type="text", text=prompt))
        said = await ctx.session.create_message([message], max_tokens=100, related_request_id=ctx.request_id)
        return f"LLM response: {said.content.text if isinstance(said.content, TextContent) else said.content}"

    async def elicit(ctx: Context, message: str, schema: type[BaseModel]) -> str:
        said = await ctx.elicit(message, schema)
        return f"action={said.action}, content={said.data.model_dump_json() if said.action == 'accept' else {}}"

    @server.tool()
    async def test_elicitation(message: str, ctx: Context) -> str:
        """What the user says."""
        return "User response: " + await elicit(ctx, message, Answer)

    @server.tool()
    async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
        """What the user says to a form with defaults."""
        return "Elicitation completed: " + await elicit(ctx, "Please review", Defaults)

    @server.tool()
    async def test_elicitation_sep1330_enums(ctx: Context) -> str:
        """What the user chooses from five kinds of lists."""
        return "Elicitation completed: " + await elicit(ctx, "Please choose", Choices)


def _add_questions(server: MCPServer) -> None:
    """2026-07-28: an answer that asks, and the call once more with what was answered (SEP-2322)."""

    @server.tool()
    async def test_input_required_result_elicitation(ctx: Context) -> str | InputRequiredResult:
        """One question."""
        if said := _content((ctx.input_responses or {}).get("user_name"), "name"):
            return f"Hello, {said}!"
        return InputRequiredResult(input_requests={"user_name": question("What is your name?", name="string")})

    @server.tool()
    async def test_streaming_elicitation(ctx: Context) -> str | InputRequiredResult:
        """A question on a stream."""
        return InputRequiredResult(input_requests={"user_name": question("What is your name?", name="string")})


def _add_rounds(server: MCPServer) -> None:
    """The same, for what the client itself can answer."""

    @server.tool()
    async def test_input_required_result_sampling(ctx: Context) -> str | InputRequiredResult:
        """One question to the model."""
        said = (ctx.input_responses or {}).get("capital_question")
        if isinstance(said, CreateMessageResult) and isinstance(said.content, TextContent):
            return f"The model says: {said.content.text}"
        return InputRequiredResult(input_requests={"capital_question": _prompting("What is the capital of France?")})

    @server.tool()
    async def test_input_required_result_list_roots(ctx: Context) -> str | InputRequiredResult:
        """One question for the roots."""
        said = (ctx.input_responses or {}).get("client_roots")
        if isinstance(said, ListRootsResult):
            return f"Roots: {[str(root.uri) for root in said.roots]}"
        return InputRequiredResult(input_requests={"client_roots": ListRootsRequest()})

    @server.tool()
    async def test_input_required_result_capabilities(ctx: Context) -> InputRequiredResult:
        """Only questions that the client declares."""
        declared = ctx.client_capabilities
        asked: dict[str, InputRequest] = {}
        if declared is not None and declared.sampling is not None:
            asked["model"] = _prompting("Say hello")
        if declared is not None and declared.elicitation is not None:
            asked["user"] = question("What is your name?", name="string")
        return InputRequiredResult(input_requests=asked, request_state="asked")


def _add_longer_rounds(server: MCPServer) -> None:
    """Those that carry a state, which the server's own boundary seals and checks."""

    @server.tool()
    async def test_input_required_result_request_state(ctx: Context) -> str | InputRequiredResult:
        """A question with a state."""
        if "confirm" in (ctx.input_responses or {}) and ctx.request_state == "asked":
            return "state-ok"
        return InputRequiredResult(input_requests={"confirm": question("Go on?", ok="boolean")}, request_state="asked")

    @server.tool()
    async def test_input_required_result_tampered_state(ctx: Context) -> str | InputRequiredResult:
        """A state that must come back as it was."""
        if ctx.request_state is not None:
            return f"state-ok: {ctx.request_state}"
        return InputRequiredResult(input_requests={"confirm": question("Go on?", ok="boolean")}, request_state="asked")

    @server.tool()
    async def test_input_required_result_multiple_inputs(ctx: Context) -> str | InputRequiredResult:
        """Three questions at once."""
        asked: dict[str, InputRequest] = {
            "user_name": question("What is your name?", name="string"),
            "greeting": _prompting("Generate a greeting"),
            "client_roots": ListRootsRequest(),
        }
        if asked.keys() <= (ctx.input_responses or {}).keys():
            return "all three were answered"
        return InputRequiredResult(input_requests=asked, request_state="asked")

    @server.tool()
    async def test_input_required_result_multi_round(ctx: Context) -> str | InputRequiredResult:
        """Two questions, one after the other."""
        said = ctx.input_responses or {}
        state = json.loads(ctx.request_state or "{}")
        if "step2" in said and "name" in state:
            return f"{state['name']} likes {_content(said['step2'], 'color')}"
        if "step1" in said and state:
            asked, state = question("Which color?", color="string"), {"name": _content(said["step1"], "name")}
            return InputRequiredResult(input_requests={"step2": asked}, request_state=json.dumps(state))
        asked = question("What is your name?", name="string")
        return InputRequiredResult(input_requests={"step1": asked}, request_state=json.dumps({"round": 1}))
