"""``sage-sandbox exec``: one command in the sandbox, its streams passed on."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from sage_sandbox.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sage_sandbox.outcome import Outcome
    from sage_sandbox.sandbox.job import Job

EXIT_BY_REASON = {"timeout": 124, "limit": 137, "cancelled": 130, "denied": 1, "error": 1, "worker lost": 1}


@click.command("exec", context_settings={"ignore_unknown_options": False})
@options.allow()
@options.limit()
@options.timeout("the command")
@options.require()
@options.param()
@click.option("--like", metavar="TEMPLATE:PHASE/OPERATION", help="Under the exact policy of this operation.")
@click.option("--tty", is_flag=True, help="Give the command a terminal of its own, and pass it through unescaped.")
@click.option("--report", type=click.Path(dir_okay=False), help="Write the outcome to this file, as JSON.")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="-- CMD...")
def command(argv: tuple[str, ...], *, like: str | None, tty: bool, report: str | None, **settings: Any) -> int:
    """Run one command in the sandbox.

    It may touch exactly what --allow names. stdin, stdout and stderr are passed on: as they are to files and pipes,
    escaped to a terminal unless --tty. The exit code is the command's; 128+n if signal n ended it, 124 on a timeout,
    137 on a limit, 14 if the sandbox cannot be had.

    What the command prints is yours and passed on whole: secrets and personal data are not looked for in it. A --report
    holds none.

    With --like and no command, the operation itself is run.
    """
    from sage_sandbox.errors import UsageError

    if not argv and like is None:
        raise UsageError("no command was given", "sage-sandbox exec -- CMD...")
    job = _job(argv, like, settings)
    outcome = _run(job, tty=tty, relayed=bool(argv) or job.type == "command")
    if report is not None:
        _write_report(report, job, outcome)
    return _settle(outcome)


def _job(argv: Sequence[str], like: str | None, settings: dict[str, Any]) -> Job:
    from dataclasses import replace
    from pathlib import Path

    from sage_sandbox.grants.asking import terminal_asker
    from sage_sandbox.single import command_job, like_job

    project = Path(os.path.realpath("."))
    common = (settings["grants"], settings["limits"], settings["timeout_s"], project)
    if like is None:
        job = command_job(argv, *common)
    else:
        job = like_job(like, argv, *common, settings["params"], terminal_asker())
    return replace(job, require_cgroup="memory=cgroup" in settings["requirements"])


def _run(job: Job, *, tty: bool, relayed: bool) -> Outcome:
    from sage_sandbox.cli.terminal import own_terminal
    from sage_sandbox.operations.confining import supervisor as confining
    from sage_sandbox.sandbox.watch import Relay
    from sage_sandbox.signals import cancel_on_signals

    supervisor = confining(job.project)
    try:
        with cancel_on_signals(interrupt=not tty) as cancel_fd:
            if tty:
                with own_terminal() as (terminal, controller):
                    relay = Relay(0, (1, 2), lambda _number, data: data, terminal, controller)
                    return supervisor.run(job, cancel_fd=cancel_fd, relay=relay)
            return supervisor.run(job, cancel_fd=cancel_fd, relay=Relay(0, (1, 2), _speller()) if relayed else None)
    finally:
        supervisor.close()


def _speller() -> Callable[[int, bytes], bytes]:
    """As it is for files and pipes; for a terminal, only what no terminal acts on."""
    from codecs import getincrementaldecoder

    from sage_sandbox.escaping import escape_lines

    decoders = {fd: getincrementaldecoder("utf-8")("backslashreplace") for fd in (1, 2) if os.isatty(fd)}

    def spell(number: int, data: bytes) -> bytes:
        return escape_lines(decoders[number].decode(data)).encode() if number in decoders else data

    return spell


def _write_report(path: str, job: Job, outcome: Outcome) -> None:
    """Write down the whole outcome, without secrets and personal data: a report is for others to read."""
    from pathlib import Path
    from tempfile import NamedTemporaryFile

    from sage_sandbox.document import handed_document
    from sage_sandbox.errors import UsageError
    from sage_sandbox.results.leaving import hand_back
    from sage_sandbox.results.scrub import Scrubber, known_values

    granted = (value for name, value in job.env if name in job.policy.env)
    clean, _ = Scrubber(known_values(os.environ)).knowing(granted).outcome(outcome)
    report = handed_document(clean, hand_back(clean, whole=True))
    try:
        # Beside it, then in its place: a link there is replaced, never followed.
        target = Path(path)
        with NamedTemporaryFile("w", dir=target.parent, delete=False, encoding="utf-8") as file:
            file.write(json.dumps(report, indent=2) + "\n")
        Path(file.name).replace(target)
    except OSError as error:
        raise UsageError(f"--report {path}: {error.strerror}") from error


def _settle(outcome: Outcome) -> int:
    """Say what the exit code cannot, and return it."""
    from sage_sandbox.escaping import escape, escape_lines

    if outcome.ok and outcome.exit_code is None:
        text = outcome.result.decode()
        click.echo(escape_lines(text) if os.isatty(1) else text)
    if not outcome.ok and (outcome.exit_code is None or outcome.exit_code in (126, 127)):
        click.echo(f"✗ {escape(outcome.error)}", err=True)
    if outcome.hint:
        click.echo(f"hint: {escape_lines(outcome.hint)}", err=True)
    if outcome.exit_code is not None:
        return outcome.exit_code
    return EXIT_BY_REASON[outcome.reason] if outcome.reason else 0
