"""The frame of the command line: which verbs there are, and how every one of them ends.

Nothing but click is loaded until a verb is asked for. A verb lives in a module of its own as ``command``; it returns
its exit code (None is 0) and raises what went wrong. Errors become text in one place, `report`.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Sequence


class Verb(NamedTuple):
    """Where a verb lives, its line in the help, and whether it needs a Linux kernel."""

    module: str
    help: str
    confines: bool = False


VERBS: Final = {
    "audit": Verb("sage_sandbox.cli.audit", "Show or verify what was done, and on whose word."),
    "cache": Verb(
        "sage_sandbox.cli.cache", "Show or throw away what is kept so that the same operation need not run again."
    ),
    "cancel": Verb("sage_sandbox.cli.cancel", "End a run; what is done is saved."),
    "demo": Verb(
        "sage_sandbox.cli.demo", "Show an untrusted workflow at work, and hostile code denied.", confines=True
    ),
    "doctor": Verb(
        "sage_sandbox.cli.doctor", "Say which kernel features are here, what each gives, and how to get the others."
    ),
    "exec": Verb("sage_sandbox.cli.exec", "Run one command in the sandbox.", confines=True),
    "list": Verb(
        "sage_sandbox.cli.list", "List the runs of this project: feature, status, progress, phase, start, template."
    ),
    "logs": Verb(
        "sage_sandbox.cli.logs", "Show what happened in a run: phases, operations, failures, with their times."
    ),
    "plan": Verb("sage_sandbox.cli.plan", "Draw the order of a workflow, and what it asks for."),
    "resume": Verb("sage_sandbox.cli.resume", "Go on with a run that was stopped, paused or killed.", confines=True),
    "run": Verb("sage_sandbox.cli.run", "Run a workflow, every operation in a sandbox of its own.", confines=True),
    "schema": Verb("sage_sandbox.cli.schema", "Print the JSON Schema of a template."),
    "serve": Verb(
        "sage_sandbox.cli.serve", "Serve the tools for agents, over the Model Context Protocol.", confines=True
    ),
    "state": Verb(
        "sage_sandbox.cli.state", "Verify, export, re-encrypt or throw away what runs have saved in this project."
    ),
    "status": Verb("sage_sandbox.cli.status", "Show how a run stands: progress, metrics, errors."),
    "tools": Verb("sage_sandbox.cli.tools", "List the tool servers of this project, and approve them."),
    "validate": Verb("sage_sandbox.cli.validate", "Report everything that is wrong with a template."),
}


class _Verbs(click.Group):
    """A group that imports a verb when it is used, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        if verb.confines and sys.platform != "linux":
            return _unavailable(cmd_name, verb)
        command = import_module(verb.module).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


def _unavailable(name: str, verb: Verb) -> click.Command:
    """A verb that says why it cannot work on this system."""

    def refuse(**_: object) -> None:
        from sage_sandbox.errors import SandboxUnavailable

        raise SandboxUnavailable(
            f"{name} confines operations with the Linux kernel, and this is {sys.platform}",
            "validate, plan and schema work here",
            "linux",
        )

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, anything, refuse, help=verb.help, add_help_option=True)


def _print_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        import sage_sandbox as sage

        click.echo(f"sage-sandbox {sage.__version__}")
        ctx.exit()


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 usage or invalid template, 3 paused, 10 no such run, 11 locked, "
    "12 wrong key, 13 state damaged, 14 no sandbox, 15 not granted, 124 timeout, 130 cancelled.",
)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Run a stranger's workflow in parallel, every operation in a kernel sandbox of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that ``argv`` (default: the command line) names; the exit code."""
    try:
        code = cli.main(argv, prog_name="sage-sandbox", standalone_mode=False)
        if sys.stdout is not None:  # closed by whoever started us
            sys.stdout.flush()
    except BrokenPipeError:
        return _close_quietly()
    except (KeyboardInterrupt, click.Abort):
        return 130
    except Exception as error:  # noqa: BLE001 - the one place where what went wrong becomes text
        return report(error)
    return int(code or 0)


def report(error: Exception) -> int:
    """Say on stderr what went wrong and what to do next; the exit code that belongs to it."""
    from sage_sandbox.errors import DefinitionError, ExitCode, SageError

    if isinstance(error, DefinitionError) and error.problems:
        from sage_sandbox.cli.rendering import render_problems

        _say(render_problems(error.problems))
        _say_hint(error.hint)
        return error.exit_code
    if isinstance(error, SageError):
        _say_error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.ClickException):
        message = error.format_message().rstrip(".")
        _say_error(message[:1].lower() + message[1:], _usage_hint(error))
        return error.exit_code
    if os.environ.get("SAGE_DEBUG"):
        import traceback

        traceback.print_exception(error)
    _say_error(f"internal error: {type(error).__name__}: {error}", "set SAGE_DEBUG=1 to see where")
    return ExitCode.FAILED


def _say_error(message: str, hint: str) -> None:
    from sage_sandbox.escaping import escape_lines

    _say(f"✗ {escape_lines(message)}")
    _say_hint(hint)


def _say_hint(hint: str) -> None:
    from sage_sandbox.escaping import escape_lines

    if hint:
        _say(f"hint: {escape_lines(hint)}")


def _say(text: str) -> None:
    click.echo(text, err=True)


def _usage_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context is not None else "sage-sandbox --help"


def _close_quietly() -> int:
    """Whoever read our output has gone: leave without a word, now and at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
