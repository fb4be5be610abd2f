"""What `run` and `resume` share: options, how a run is carried out, and what it prints."""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from sage_sandbox.cli import options

if TYPE_CHECKING:
    from sage_sandbox.api import How, Prepared
    from sage_sandbox.errors import SageError

F = TypeVar("F", bound=Callable[..., Any])

PHASES_SHOWN: Final = 20


def run_options() -> Callable[[F], F]:
    """The options that say how a run is to run."""
    wrappers = (
        options.allow(),
        click.option(
            "--parallel",
            type=click.IntRange(1, 9999),
            metavar="N",
            help="How many operations at once [SAGE_PARALLEL_LIMIT, 4].",
        ),
        click.option("--sequential", is_flag=True, help="One operation at a time."),
        options.timeout("the workflow"),
        options.budget(),
        options.require(),
        click.option("--full", is_flag=True, help="Print whole results, not the kept part of each."),
        click.option("--no-cache", is_flag=True, help="Run everything; neither use nor keep outcomes of other runs."),
        click.option("--detach", is_flag=True, help="Go on in a process of its own; print how to find it."),
        options.as_json(),
    )

    def wrap(function: F) -> F:
        for wrapper in reversed(wrappers):
            function = wrapper(function)
        return function

    return wrap


def how_of(settings: dict[str, Any], *, as_json: bool) -> How:
    """What was typed, as the library takes it: on a terminal there is somebody to ask."""
    from sage_sandbox.api import How
    from sage_sandbox.observe.progress import Progress

    return How(
        project=Path(os.path.realpath(".")),
        allow=settings["grants"],
        parallel=settings["parallel"],
        sequential=settings["sequential"],
        timeout_s=settings["timeout_s"],
        require=frozenset(settings["requirements"]),
        observers=(Progress(),),
        cache=not settings["no_cache"],
        budgets=settings["budgets"],
        ask_passphrase=passphrase_asker(as_json=as_json),
        **({} if as_json else _askers()),
    )


def _askers() -> dict[str, Any]:
    """Who is asked, where somebody sits at a terminal; loaded where somebody may."""
    from sage_sandbox.cli.stale import terminal_stale_asker
    from sage_sandbox.grants.asking import terminal_asker
    from sage_sandbox.grants.asking_servers import terminal_server_asker

    return {"ask": terminal_asker(), "ask_server": terminal_server_asker(), "ask_stale": terminal_stale_asker()}


def passphrase_asker(*, as_json: bool = False) -> Callable[[], str] | None:
    """Who to ask for a passphrase: somebody on a terminal, or nobody."""
    return _ask_passphrase if sys.stdin.isatty() and not as_json else None


def _ask_passphrase() -> str:
    """A passphrase typed without echo."""
    return str(click.prompt("passphrase for the state", hide_input=True, err=True))


def reported(feature: str | None, as_json: bool, act: Callable[[], int]) -> int:
    """Carry something out; with ``--json`` a refusal is a document too."""
    from sage_sandbox.errors import SageError

    keep_private()
    # Looking for plug-ins reads what every installed distribution says of itself; there shall be none in here anyway.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    with _rubbish_left_alone():
        try:
            return act()
        except SageError as error:
            if as_json:
                click.echo(json.dumps(refusal(feature, error), indent=2))
            raise


@contextmanager
def _rubbish_left_alone() -> Iterator[None]:
    """Have nothing looked through for rubbish before a run begins, nor at the end of the process.

    What is loaded and made until then stays: modules, and for 10,000 phases hundreds of thousands of objects.
    Looking through them again and again is a sixth of what a run takes that is wholly cached.
    """
    gc.disable()
    gc.set_threshold(50_000, 20, 100)
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


def carry_out(ready: Prepared, *, as_json: bool, full: bool = False) -> int:
    """Run what was prepared, say what there is to say, print what came of it; the exit code."""
    from sage_sandbox.signals import cancelled_by_signals

    for line in prologue(ready):
        say(line)
    gc.freeze()
    gc.enable()
    with cancelled_by_signals(ready.runner.cancel):
        result = ready.runner.run()

    from sage_sandbox.cli.results import result_lines
    from sage_sandbox.document import document

    if as_json:
        click.echo(json.dumps(document(result, whole=full), indent=2))
    else:
        for line in result_lines(result, whole=full):
            click.echo(line)
    return int(result.exit_code)


def keep_private() -> None:
    """This process will hold keys: nobody may look into its memory or its environment (prctl(2), PR_SET_DUMPABLE)."""
    from sage_sandbox.sandbox.inside.syscalls import set_dumpable

    set_dumpable(False)


def prologue(ready: Prepared) -> list[str]:
    """What to say before the first operation: what is out of the ordinary, what is kept and what runs again."""
    lines = [f"⚠ {notice}" for notice in ready.notices]
    if ready.kept is not None:
        kept = list(ready.kept.earlier.phases)
        total = len(ready.workflow.phases)
        lines.append(f"✓ {len(kept)} of {total} phases are kept" + (f" ({_some(kept)})" if kept else ""))
        lines += [f"▸ {phase} is dropped: {why}" for phase, why in ready.kept.gone]
        lines += [f"▸ {phase} runs: {why}" for phase, why in ready.kept.again[:PHASES_SHOWN]]
        if (more := len(ready.kept.again) - PHASES_SHOWN) > 0:
            lines.append(f"▸ and {more} more")
        if not ready.kept.again:
            lines.append("✓ every phase is done: nothing runs again")
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def refusal(feature: str | None, error: SageError) -> dict[str, Any]:
    """The document of a run that did not start: the same fields, nothing in them."""
    problems = getattr(error, "problems", ()) or getattr(error, "missing", ())
    return {
        "success": False,
        "workflowId": None,
        "feature": feature,
        "workflow": None,
        "status": "failed",
        "exitCode": int(error.exit_code),
        "results": None,
        "errors": [
            {"phase": "", "operation": "", "reason": "refused", "message": str(text), "hint": error.hint}
            for text in (problems or (error.message,))
        ],
        "hint": error.hint,
    }


def say(text: str) -> None:
    """A line on stderr, fit for a terminal."""
    from sage_sandbox.escaping import escape

    click.echo(escape(text), err=True)
