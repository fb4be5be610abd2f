"""How a run is to run, whatever it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sage_sandbox.errors import UsageError
from sage_sandbox.frozen import frozen
from sage_sandbox.policy import Grant
from sage_sandbox.runner import parallel_limit
from sage_sandbox.workflow.definition import Budgets

if TYPE_CHECKING:
    from sage_sandbox.brokering import AskStale
    from sage_sandbox.events import Observer
    from sage_sandbox.grants.asking import Asker
    from sage_sandbox.grants.asking_servers import ServerAsker

REQUIREMENTS: Final = ("memory=cgroup",)


@frozen
class How:
    """How a run is to run, whatever it is: what `run` and `resume` have in common.

    ``environ`` is where keys and the values of granted names are read. ``ask_passphrase`` is asked where no key can be
    kept; ``ask`` for grants that are missing, ``ask_server`` for tool servers that are not approved, ``ask_stale``
    whether old answers may stand in for one that is unavailable (they do where nobody can be asked). ``within`` is the
    most that may be granted, whatever the user allowed; None sets no such bound. Without ``cache`` everything runs, and
    nothing is kept for other runs. ``budgets`` hold beside the template's, the smaller of each; on resuming they hold
    instead.
    """

    project: Path
    allow: tuple[Grant, ...] = ()
    within: tuple[Grant, ...] | None = None
    parallel: int | None = None
    sequential: bool = False
    timeout_s: float | None = None
    require: frozenset[str] = frozenset()
    observers: tuple[Observer, ...] = ()
    ask: Asker | None = None
    ask_server: ServerAsker | None = None
    ask_stale: AskStale | None = None
    ask_passphrase: Callable[[], str] | None = None
    environ: Mapping[str, str] | None = None
    cache: bool = True
    budgets: Budgets = Budgets()

    @property
    def slots(self) -> int:
        """How many operations at once."""
        return 1 if self.sequential else self.parallel or parallel_limit(self.env)

    @property
    def env(self) -> Mapping[str, str]:
        """The environment that was given, else this process's."""
        return os.environ if self.environ is None else self.environ


def check_how(how: How) -> None:
    """UsageError for a requirement that there is not."""
    if unknown := how.require - set(REQUIREMENTS):
        raise UsageError(f"{min(unknown)!r} is nothing that can be required", f"one of {', '.join(REQUIREMENTS)}")
