"""How what went wrong becomes text that a model can act on: a code, what happened, what to do next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal

from mcp.server.mcpserver.exceptions import ToolError

from sage_sandbox.control.asking import NotAnswering, NotCancelled, NotRunning
from sage_sandbox.errors import (
    BreakerOpen,
    DefinitionError,
    ExitCode,
    Locked,
    NoSuchPhase,
    NoSuchRun,
    NotGranted,
    SageError,
    StateCorrupted,
    StateTooNew,
    StateUnwritable,
    Unfinished,
    WrongKey,
)
from sage_sandbox.escaping import clip, escape_lines
from sage_sandbox.frozen import frozen

Code = Literal[
    "WORKFLOW_VALIDATION_ERROR",
    "CYCLE_DETECTED",
    "TIMEOUT_EXCEEDED",
    "EXTERNAL_API_FAILURE",
    "NO_CHECKPOINT_FOUND",
    "STATE_CORRUPTED",
    "INVALID_PHASE",
    "FILESYSTEM_ERROR",
    "WORKFLOW_NOT_FOUND",
    "WORKFLOW_NOT_RUNNING",
    "CHECKPOINT_SAVE_FAILED",
    "NOT_GRANTED",
]

TEXT_MOST: Final = 4000
"""The most characters that a refusal has."""
_PROBLEMS_SHOWN: Final = 20
_LINE_MOST: Final = 400

_LOOK: Final = "sage_workflow_list shows the runs there are"


@frozen
class Refusal:
    """Why a call was not carried out."""

    code: Code
    message: str
    hint: str = ""

    def error(self) -> ToolError:
        """As the one exception whose text reaches the model."""
        return ToolError(self.text())

    def text(self) -> str:
        """``CODE: what happened``, then ``hint: what to do next``."""
        text = f"{self.code}: {escape_lines(self.message)}"
        text = text if len(text) <= TEXT_MOST else text[: TEXT_MOST - 1] + "…"
        return f"{text}\nhint: {clip(self.hint, TEXT_MOST // 2)}" if self.hint else text


@frozen
class Call:
    """The words of a call that help to say what comes next."""

    feature: str = ""
    template: str = ""
    resuming: bool = False


@contextmanager
def told(call: Call) -> Iterator[None]:
    """Turn what the library raises into what a client may read."""
    try:
        yield
    except (SageError, OSError) as error:
        raise refusal(error, call).error() from error


def refusal(error: SageError | OSError, call: Call) -> Refusal:
    """What to say of an error: as the nearest of its classes has it."""
    return next(_TOLD[kind] for kind in type(error).__mro__ if kind in _TOLD)(error, call)


def _of_system(error: OSError, _: Call) -> Refusal:
    where = f": {error.filename}" if error.filename else ""
    return Refusal("FILESYSTEM_ERROR", f"{error.strerror or error}{where}", "look at the project's .sage folder")


def _of_unwritable(error: StateUnwritable, _: Call) -> Refusal:
    return Refusal("FILESYSTEM_ERROR", error.message, "make room, or make the project's .sage folder writable")


def _of_no_run(error: NoSuchRun, call: Call) -> Refusal:
    if call.resuming:
        return Refusal("NO_CHECKPOINT_FOUND", error.message, f"{_LOOK}; sage_workflow_execute starts one")
    return Refusal("WORKFLOW_NOT_FOUND", error.message, _LOOK)


def _of_not_running(error: NotRunning, _: Call) -> Refusal:
    hint = error.hint or "sage_workflow_status says how it ended; sage_workflow_resume goes on with it"
    return Refusal("WORKFLOW_NOT_RUNNING", error.message, hint)


def _of_silence(error: NotAnswering, _: Call) -> Refusal:
    hint = f"{error.hint}; whether anything was saved, sage_workflow_status says once it answers"
    return Refusal("CHECKPOINT_SAVE_FAILED", error.message, hint)


def _of_breaking(error: NotCancelled, call: Call) -> Refusal:
    hint = f"phases that were done stay; sage_workflow_status(feature={call.feature!r}) says how it stands"
    return Refusal("CHECKPOINT_SAVE_FAILED", error.message, hint)


def _of_state(error: SageError, _: Call) -> Refusal:
    return Refusal("STATE_CORRUPTED", error.message, error.hint or "your user can see more: sage-sandbox state verify")


def _of_service(error: BreakerOpen, _: Call) -> Refusal:
    return Refusal("EXTERNAL_API_FAILURE", error.message, f"try again in {error.wait_s:.0f} s")


def _of_phase(error: NoSuchPhase, _: Call) -> Refusal:
    return Refusal("INVALID_PHASE", error.message, error.hint)


def _of_unfinished(error: Unfinished, call: Call) -> Refusal:
    hint = f"go on with it: sage_workflow_resume(feature={call.feature!r}); or choose another feature"
    return Refusal("WORKFLOW_VALIDATION_ERROR", error.message, hint)


def _of_lock(error: SageError, call: Call) -> Refusal:
    hint = (
        f"wait for it: sage_workflow_status(feature={call.feature!r}, wait_s=60); end it: sage_workflow_cancel; "
        "or choose another feature"
    )
    return Refusal("WORKFLOW_VALIDATION_ERROR", error.message, hint)


def _of_anything(error: SageError, call: Call) -> Refusal:
    """Why a run's own process ended before the run began is told by its exit code."""
    match error.exit_code:
        case ExitCode.NOT_GRANTED:
            return Refusal("NOT_GRANTED", error.message, _command(call))
        case ExitCode.LOCKED:
            return _of_lock(error, call)
        case ExitCode.STATE_CORRUPTED | ExitCode.WRONG_KEY:
            return _of_state(error, call)
    hint = error.hint or "mend what it says and call again"
    if hint.startswith("--param"):
        hint = (
            f"only your user can set parameters, in a terminal: sage-sandbox run {call.template} {call.feature} {hint}"
        )
    return Refusal("WORKFLOW_VALIDATION_ERROR", error.message, hint)


def _of_definition(error: DefinitionError, _: Call) -> Refusal:
    from sage_sandbox.workflow.checking import CYCLE_MESSAGE

    wrong = [problem for problem in error.problems if problem.severity == "error"]
    cyclic = any(problem.message.startswith(CYCLE_MESSAGE) for problem in wrong)
    lines = [f"{problem.field}: {problem.message}".removeprefix(": ")[:_LINE_MOST] for problem in wrong]
    more = f"\nand {len(lines) - _PROBLEMS_SHOWN} more" if len(lines) > _PROBLEMS_SHOWN else ""
    message = "\n".join((error.message, *lines[:_PROBLEMS_SHOWN])) + more
    fixes = dict.fromkeys(problem.fix for problem in wrong if problem.fix)
    hint = "; ".join((*list(fixes)[:3], "then check it with sage_workflow_validate"))
    return Refusal("CYCLE_DETECTED" if cyclic else "WORKFLOW_VALIDATION_ERROR", message, hint)


def _of_grants(error: NotGranted, call: Call) -> Refusal:
    """What the user has to type, for nobody else can; or what the caller can do about its own bound."""
    asked = " ".join(option for option in error.missing if option.startswith("--allow"))
    if asked:
        return Refusal("NOT_GRANTED", f"{error.message}: {asked}", _command(call))
    if error.missing:
        typed = " && ".join(error.missing)
        return Refusal("NOT_GRANTED", error.message, f"only your user can, in a terminal in the project: {typed}")
    return Refusal("NOT_GRANTED", error.message, error.hint or _command(call))


def _command(call: Call) -> str:
    """The terminal asks, and what is answered with "always" holds for the calls that follow."""
    if call.template:
        typed = f"sage-sandbox run {call.template} {call.feature} (and answer r, always)"
    else:
        typed = f"sage-sandbox resume {call.feature}"
    return f"only your user can, in a terminal in the project: {typed}"


_TOLD: Final[Mapping[type, Callable[[Any, Call], Refusal]]] = {
    OSError: _of_system,
    StateUnwritable: _of_unwritable,
    DefinitionError: _of_definition,
    NotGranted: _of_grants,
    NoSuchPhase: _of_phase,
    NoSuchRun: _of_no_run,
    NotRunning: _of_not_running,
    NotAnswering: _of_silence,
    NotCancelled: _of_breaking,
    StateCorrupted: _of_state,
    WrongKey: _of_state,
    StateTooNew: _of_state,
    BreakerOpen: _of_service,
    Unfinished: _of_unfinished,
    Locked: _of_lock,
    SageError: _of_anything,
}
