"""The question on a terminal whether tool servers may be started or contacted, and how a definition is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from sage_sandbox.escaping import escape
from sage_sandbox.frozen import frozen
from sage_sandbox.grants.asking import read_line
from sage_sandbox.grants.asks import quote
from sage_sandbox.grants.environment import looks_like_credential
from sage_sandbox.toolservers.definition import Server, variables_in


@frozen
class ServerQuestion:
    """Definitions that are put to the user; those in ``changed`` were approved before, when they read otherwise."""

    servers: tuple[Server, ...]
    changed: tuple[str, ...] = ()


ServerAsker = Callable[[ServerQuestion], bool]


def terminal_server_asker(stdin: TextIO | None = None, stderr: TextIO | None = None) -> ServerAsker | None:
    """Somebody to ask, if both ends are a terminal (default: the process's own)."""
    stdin, stderr = stdin or sys.stdin, stderr or sys.stderr
    if stdin is None or stderr is None or not (stdin.isatty() and stderr.isatty()):
        return None
    return lambda question: ask(question, stdin, stderr)


def ask(question: ServerQuestion, stdin: TextIO, stderr: TextIO) -> bool:
    """Show the question, wait for one line that was typed after it; anything but a clear yes is a no."""
    stderr.write(render(question))
    stderr.flush()
    return read_line(stdin.fileno()).strip().lower() in ("y", "yes")


def render(question: ServerQuestion) -> str:
    """The question as text: nothing left out, nothing a terminal would act on."""
    many = len(question.servers) > 1
    lines = [f"This project defines {'tool servers' if many else 'a tool server'} that nobody has approved yet."]
    for server in question.servers:
        lines += shown(server)
        if server.name in question.changed:
            lines.append("    It has changed since you approved it.")
    if any(server.command and not server.sandbox for server in question.servers):
        lines.append("A program that is started here outside a sandbox is not confined: it can do whatever you can.")
    return (
        "\n".join((*lines, ""))
        + f"Approve {'them' if many else 'it'}? y = yes, remembered until it changes, n = no [n] "
    )


def shown(server: Server) -> Iterator[str]:
    """A definition, line by line. A value that is likely a secret is named and not shown."""
    yield f"  {escape(server.name)} ({escape(server.source)})"
    if server.command:
        where = "in a sandbox of its own" if server.sandbox else "in the project's folder"
        yield f"    starts, {where}: {' '.join(quote(word) for word in (server.command, *server.args))}"
        yield from (f"    may touch: {quote(grant)}" for grant in server.policy)
    else:
        yield f"    calls: {quote(server.url)}"
    yield from (f"    environment: {_shown_value(name, text)}" for name, text in server.env)
    yield from (f"    header: {_shown_header(name, text)}" for name, text in server.headers)
    if names := server.variables():
        yield f"    takes from your environment: {', '.join(names)}"


def _shown_value(name: str, text: str) -> str:
    if looks_like_credential(name) and not variables_in(text):
        return f"{quote(name)} (its value is not shown)"
    return f"{quote(name)}={quote(text)}"


def _shown_header(name: str, text: str) -> str:
    return f"{quote(name)}: {quote(text)}" if variables_in(text) else f"{quote(name)} (its value is not shown)"
