"""The shapes of what the tools take and return, as the specification names them; JSON Schemas are made of these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

Status = Literal["running", "paused", "completed", "failed", "cancelled"]

FEATURE_PATTERN: Final = "^[a-z0-9][a-z0-9-]{0,63}$"
WAIT_S: Final = 20.0
WAIT_MOST_S: Final = 3600.0
TIMEOUT_MOST_MS: Final = 7 * 86_400_000
ALLOW_MOST: Final = 100

# The pattern is for the caller to see; it is checked where a refusal can say what to do next.
Feature = Annotated[
    str,
    Field(description="The name of the run: a-z, 0-9 and -", json_schema_extra={"pattern": FEATURE_PATTERN}),
]
Seconds = Annotated[float, Field(ge=0, le=WAIT_MOST_S)]


class _Shape(BaseModel):
    """What is said in every list of tools is said in as few words as will do."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(schema)
        made = handler.resolve_ref_schema(found)
        made.pop("title", None)
        made["properties"] = {name: _terse(about) for name, about in made["properties"].items()}
        return found


def _terse(about: JsonSchemaValue) -> JsonSchemaValue:
    """A property without a title that repeats its name; what may be left out is left out, never null."""
    kinds = [kind for kind in about.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {name: value for name, value in about.items() if name not in ("title", "anyOf")}
    if len(kinds) != 1:
        return {**rest, "anyOf": kinds} if kinds else rest
    return {**kinds[0], **{name: value for name, value in rest.items() if name != "default"}}


class Options(_Shape):
    """How a run is to run."""

    model_config = ConfigDict(extra="forbid")

    parallel: Annotated[bool, Field(description="false: one operation at a time")] = True
    caching: Annotated[bool, Field(description="false: run everything, use no earlier outcome")] = True
    timeout: Annotated[float | None, Field(gt=0, le=TIMEOUT_MOST_MS, description="ms the workflow may take")] = None
    wait: Annotated[Seconds, Field(description="s to wait for its end before the handle is returned")] = WAIT_S
    allow: Annotated[
        list[str] | None,
        Field(
            max_length=ALLOW_MOST,
            description="the most it may be granted, e.g. ['read:src']: narrows what the user allowed, never widens it",
        ),
    ] = None


class _Answer(_Shape):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    def document(self) -> dict[str, Any]:
        """As plain data under the names of the specification; what is None is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class RunError(_Answer):
    """Why something did not succeed: an operation, a phase (``operation`` empty) or the run (both empty)."""

    phase: str = ""
    operation: str = ""
    reason: str = ""
    message: str = ""


class Progress(_Answer):
    """Phases that are done."""

    completed: int
    total: int
    percentage: int


class Artifact(_Answer):
    """A file that an operation left."""

    path: str
    size: int


class OperationResult(_Answer):
    """The kept part of what one operation left."""

    id: str
    status: Literal["fulfilled", "rejected"]
    result: Any = None
    reason: str | None = None
    message: str | None = None
    hint: str | None = None
    stderr: str | None = None
    artifacts: list[Artifact] | None = None


class PhaseResult(_Answer):
    """A phase that ended; ``duration`` in ms."""

    id: str
    status: str
    duration: float
    operations: list[OperationResult]


class Results(_Answer):
    """What there is so far; ``omitted`` earlier phases had no room."""

    phases: list[PhaseResult]
    metrics: dict[str, Any]
    omitted: int | None = None


class Executed(_Answer):
    """How a run stands after it was started or gone on with."""

    success: bool = Field(description="whether it is completed, or still running")
    workflow_id: str
    status: Status
    results: Results
    errors: list[RunError]


class Resumed(Executed):
    """The same, and where it went on."""

    resumed_from: str = Field(description="the first phase that ran again; empty if none had to")


class StatusAnswer(_Answer):
    """How a run stands."""

    feature: str
    template: str
    phase: str
    status: Status
    started_at: str
    last_updated_at: str
    progress: Progress
    metrics: dict[str, Any]
    errors: list[RunError]
    interrupted: bool = Field(description="its process was killed; it can be resumed")
    trouble: str | None = None


class Listed(_Answer):
    """One run in a list."""

    feature: str
    template: str
    phase: str
    status: Status
    started_at: str
    progress: int


class Unreadable(_Answer):
    """A run that is there and cannot be read."""

    feature: str
    trouble: str


class ListAnswer(_Answer):
    """The runs, the newest first; ``omitted`` more had no room."""

    workflows: list[Listed]
    unreadable: list[Unreadable] | None = None
    omitted: int | None = None


class Cancelled(_Answer):
    """How a run that was to end did so."""

    success: bool
    feature: str
    cancelled_at: str
    checkpoint_saved: bool


class Problem(_Answer):
    """One thing wrong with a template."""

    field: str
    message: str
    severity: Literal["error", "warning"]


class Graph(_Answer):
    """The phases as a graph."""

    nodes: int
    edges: int
    depth: int


class Validated(_Answer):
    """Everything that is wrong with a template; ``omitted`` problems had no room."""

    valid: bool
    errors: list[Problem]
    warnings: list[Problem]
    graph: Graph
    omitted: int | None = None
