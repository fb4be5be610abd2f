"""The format of a template as a pydantic model: what is checked, and what is published as JSON Schema.

Only `workflow.loading` builds these, one operation at a time, and turns them into `workflow.definition`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, WithJsonSchema
from pydantic_core import PydanticCustomError

from sage_sandbox.policy import RETRIES_MAX, is_model_name, is_tool_grant, parse_duration, parse_size

ID_PATTERN: Final = r"^[a-z0-9-]{1,64}$"
PARAMETER_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$"
ENV_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
TOOL_PATTERN: Final = r"^[A-Za-z0-9_.-]{1,64}/(\*|[A-Za-z0-9_.-]{1,128})$"
PACKAGE_PATTERN: Final = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$"
SCHEMA_ID: Final = "urn:sage-sandbox:template"
THRESHOLD: Final = 0.75
TOKENS_MAX: Final = 1_000_000


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("sage", "{message}", {"message": message})


def _duration(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong("must be a duration such as 90s, 10m or a number of milliseconds")
    try:
        return parse_duration(value)
    except (ValueError, OverflowError):
        raise _wrong(f"{_shown(value)} is not a duration such as 90s, 10m or a number of milliseconds") from None


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _wrong("must be a size such as 256M or a number of bytes")
    try:
        return parse_size(value)
    except (ValueError, OverflowError):
        raise _wrong(f"{_shown(value)} is not a size such as 256M") from None


def _shown(value: float | str) -> str:
    # A huge whole number (hexadecimal ones have no length limit) cannot be printed.
    return repr(value[:40]) if isinstance(value, str) else f"{value}" if abs(value) < 1e30 else "a huge number"


def _plain(value: str) -> str:
    if not value or any(char < " " or char == "\x7f" for char in value):
        raise _wrong("must not be empty nor hold control characters")
    if "${" in value:
        raise _wrong("references (${...}) are data: they cannot stand here")
    return value


def _argument(value: str) -> str:
    if "\0" in value:
        raise _wrong("must not hold a NUL character")
    return value


def _tool(value: str) -> str:
    if not is_tool_grant(value) or value.endswith("/*"):
        raise _wrong("must be one tool of one server, as server/tool")
    return value


def _tools(value: str) -> str:
    if not is_tool_grant(value):
        raise _wrong("must be server/tool, or server/* for all tools of a server")
    return value


def _model(value: str) -> str:
    if not is_model_name(value):
        raise _wrong("must be a model of a provider, as provider/model: anthropic/NAME or openai/NAME")
    return value


def _cache(value: Any) -> tuple[bool, float | None]:
    if isinstance(value, bool):
        return value, None
    if isinstance(value, dict) and set(value) == {"ttl"}:
        return True, _duration(value["ttl"])
    raise _wrong("must be true, false, or {ttl: 7d}")


_NUMBER_OR_TEXT: Final = [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]
Duration = Annotated[
    float,
    PlainValidator(_duration),
    WithJsonSchema({"anyOf": _NUMBER_OR_TEXT, "description": "milliseconds, or text such as 90s or 10m"}),
]
Size = Annotated[
    int,
    PlainValidator(_size),
    WithJsonSchema({"anyOf": _NUMBER_OR_TEXT, "description": "bytes, or text such as 256M"}),
]
CacheAsked = Annotated[
    tuple[bool, float | None],
    PlainValidator(_cache),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "boolean"},
                {
                    "type": "object",
                    "properties": {"ttl": {"anyOf": _NUMBER_OR_TEXT}},
                    "required": ["ttl"],
                    "additionalProperties": False,
                },
            ],
            "description": "false: never answered from the cache; true, or {ttl: 7d}: also where it has grants to "
            "write or to reach out; default: where it has none",
        }
    ),
]
Plain = Annotated[str, AfterValidator(_plain)]
ToolName = Annotated[str, AfterValidator(_tool)]
ModelName = Annotated[str, AfterValidator(_model)]
Id = Annotated[str, Field(pattern=ID_PATTERN)]
EnvName = Annotated[str, Field(pattern=ENV_PATTERN)]
ToolGrant = Annotated[str, Field(pattern=TOOL_PATTERN), AfterValidator(_tools)]
PackageName = Annotated[str, Field(pattern=PACKAGE_PATTERN)]
# Tuples, since pydantic copies a mutable default for each operation; not strict, since the readers make lists.
LIST_MAX: Final = 10_000
_Listed = Field(strict=False, max_length=LIST_MAX)
Names = Annotated[tuple[Plain, ...], _Listed]


class _Model(BaseModel):
    # What checks a model is built when it first checks something. Defaults are constructed: they need no check, and
    # would have their models' built here.
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True, defer_build=True)


class PolicyModel(_Model):
    """What the operation asks to touch. The user grants it, or the run does not start; unset means nothing."""

    read: Names = Field(default=(), description="files and folders to read")
    write: Names = Field(default=(), description="files and folders to write; committed after success")
    write_through: Names = Field(default=(), description="files and folders to write directly")
    net: Names = Field(default=(), description="HOST:PORT or *.DOMAIN:PORT, over http or https: data may leave there")
    loopback: bool = Field(default=False, description="a loopback interface of its own")
    tool: Annotated[tuple[ToolGrant, ...], _Listed] = Field(
        default=(), description="server/tool to call, or server/* for all tools of a server"
    )
    env: Annotated[tuple[EnvName, ...], _Listed] = Field(default=(), description="environment variables to see")


class LimitsModel(_Model):
    """How much of the machine the operation may use."""

    memory: Size | None = Field(default=None, description="default 256M")
    cpu: Duration | None = Field(default=None, description="processor time, default 60s")
    pids: int | None = Field(default=None, ge=1, description="processes and threads, default 64")
    disk: Size | None = Field(default=None, description="of the work folder, default 64M")


class KeepModel(_Model):
    """What of the result reaches people and agents; state keeps all of it."""

    fields: Names = Field(default=(), description="names of the result's fields, or paths to them: commits.hash")
    max_items: int | None = Field(default=None, ge=1, description="of each list")
    max_bytes: int | None = Field(default=None, ge=1, description="of the whole, as JSON; default 2000")


class _OperationModel(_Model):
    id: Id | None = Field(default=None, description="unique in its phase; default op-1, op-2 by position")
    params: Any = Field(default=None, description="data for the operation; may hold ${...} references")
    policy: PolicyModel = PolicyModel.model_construct()
    limits: LimitsModel = LimitsModel.model_construct()
    timeout: Duration | None = Field(default=None, description="default: that of its phase")
    retries: int = Field(default=0, ge=0, le=RETRIES_MAX, description="after an error, a timeout or a lost worker")
    cache: CacheAsked | None = None
    keep: KeepModel | None = None


class PythonModel(_OperationModel):
    """A python operation: `def run(params, inputs, tools)`, called with those of the three it names."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["code"]}, {"required": ["file"]}], "title": "python operation"}
    )

    type: Literal["python"]
    code: str | None = Field(default=None, description="the source")
    file: Plain | None = Field(default=None, description="*.py beneath the template's folder, instead of code")
    files: Names = Field(default=(), description="further *.py that the code imports")
    packages: Annotated[tuple[PackageName, ...], _Listed] = Field(
        default=(), description="installed distributions that the code imports"
    )


class CommandModel(_OperationModel):
    """A command operation: a program and its arguments, no shell; params arrive as JSON on stdin."""

    model_config = ConfigDict(json_schema_extra={"title": "command operation"})

    type: Literal["command"]
    argv: Annotated[tuple[Annotated[str, AfterValidator(_argument)], ...], _Listed] = Field(
        min_length=1, description="the program, then its arguments, which may hold ${...} references"
    )
    output: Literal["text", "lines", "json"] = Field(default="text", description="how stdout becomes the result")
    ok_codes: Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...], _Listed] = Field(
        default=(0,), min_length=1, description="exit codes that mean success"
    )


class McpModel(_Model):
    """An mcp operation: one call of one tool, with params as its arguments; the user grants that very tool."""

    model_config = ConfigDict(json_schema_extra={"title": "mcp operation"})

    type: Literal["mcp"]
    id: Id | None = Field(default=None, description="unique in its phase; default op-1, op-2 by position")
    tool: ToolName = Field(description="server/tool")
    params: Any = Field(default=None, description="the arguments, a mapping; may hold ${...} references")
    timeout: Duration | None = Field(default=None, description="default: that of its phase")
    retries: int = Field(
        default=0, ge=0, le=RETRIES_MAX, description="after an error, a timeout, or a server that does not answer"
    )
    cache: CacheAsked | None = None
    keep: KeepModel | None = None


class LlmModel(_Model):
    """An llm operation: one question to a model; the user grants that very model, and the prompt leaves to it."""

    model_config = ConfigDict(json_schema_extra={"title": "llm operation"})

    type: Literal["llm"]
    id: Id | None = Field(default=None, description="unique in its phase; default op-1, op-2 by position")
    model: ModelName = Field(description="provider/model; the providers anthropic and openai, and those you configured")
    prompt: str = Field(min_length=1, description="what is asked; may hold ${...} references")
    system: str = Field(default="", description="what goes before the prompt; may hold ${...} references")
    max_tokens: int = Field(ge=1, le=TOKENS_MAX, description="of the answer; one that needs more is rejected")
    answer: Any = Field(
        default=None,
        alias="schema",
        description="the answer is JSON and as this JSON Schema says, else it is rejected; without it, it is text",
        json_schema_extra={"type": "object"},
    )
    timeout: Duration | None = Field(default=None, description="default: that of its phase")
    retries: int = Field(
        default=0, ge=0, le=RETRIES_MAX, description="after an error, a timeout, or a provider that does not answer"
    )
    cache: CacheAsked | None = None
    keep: KeepModel | None = None


OperationModel = PythonModel | CommandModel | McpModel | LlmModel
OPERATION_MODELS: Final[dict[str, type[OperationModel]]] = {
    "python": PythonModel,
    "command": CommandModel,
    "mcp": McpModel,
    "llm": LlmModel,
}
AnyOperation = Annotated[OperationModel, Field(discriminator="type")]


class PhaseFields(_Model):
    """A phase whose operations and dependencies are still unchecked."""

    id: Id = Field(description="unique in the workflow")
    name: str = Field(min_length=1, max_length=50)
    operations: Any
    dependencies: Any = ()
    timeout: Duration | None = Field(default=None, description="default 10m")
    success_threshold: float = Field(
        default=THRESHOLD, ge=0, le=1, description="share of the operations that must succeed"
    )


class PhaseModel(PhaseFields):
    """One operation, or several that run in parallel, once the dependencies are done."""

    model_config = ConfigDict(title="phase")

    operations: AnyOperation | Annotated[list[AnyOperation], Field(min_length=1)] = Field(
        description="a list runs in parallel; a single mapping is one operation"
    )
    dependencies: list[Id] = Field(default=[], description="ids of the phases that must be done before")


class ParameterModel(_Model):
    """A value that --param sets and ${params.NAME} puts into params or argv."""

    model_config = ConfigDict(title="parameter")

    type: Literal["string", "integer", "number", "boolean", "array", "object"]
    default: Any = None
    required: bool | None = Field(default=None, description="default: required if there is no default")
    description: str = ""


class BudgetsModel(_Model):
    """The most that a run may spend; reached, it is paused. The user may set less, or raise it on resuming."""

    model_config = ConfigDict(title="budgets")

    tokens: int | None = Field(default=None, ge=1, description="that models read and write")
    cost: float | None = Field(default=None, gt=0, description="in the currency of the user's prices")
    time: Duration | None = Field(default=None, description="of running, resumes included")


class WorkflowFields(_Model):
    """A workflow whose phases are still unchecked."""

    name: str = Field(min_length=1, max_length=100)
    description: str = ""
    timeout: Duration | None = Field(default=None, description="of the whole run, default 10m")
    parameters: dict[Annotated[str, Field(pattern=PARAMETER_PATTERN)], ParameterModel] = Field(
        default={}, max_length=1_000, json_schema_extra={"additionalProperties": False}
    )
    budgets: BudgetsModel = BudgetsModel.model_construct()
    phases: list[Any] = Field(min_length=1)


class WorkflowModel(WorkflowFields):
    """Phases of operations, each of which runs in a sandbox of its own."""

    model_config = ConfigDict(title="sage-sandbox workflow")

    phases: list[PhaseModel] = Field(min_length=1)


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a template, for editors."""
    made = TypeAdapter(WorkflowModel).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **made}
