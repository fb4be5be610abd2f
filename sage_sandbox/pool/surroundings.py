"""What a process of ours is born into: a safe module path, no secrets, no share in the terminal's Ctrl-C.

Measured: with a project as working directory, loky's workers and resource trackers executed that project's
``loky/__init__.py``, ``json.py`` and ``pickle.py``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sage_sandbox.policy import SECRET_NAMES

_HOME: Final = str(Path(__file__).resolve().parents[2])
_NO_TRACKER_WARNING: Final = "ignore:resource_tracker:UserWarning"
_SET: Final[Mapping[str, Callable[[str | None], str]]] = {
    "PYTHONSAFEPATH": lambda _: "1",
    # The last filter comes first; what the user set holds for all else.
    "PYTHONWARNINGS": lambda given: f"{given},{_NO_TRACKER_WARNING}" if given else _NO_TRACKER_WARNING,
}
_lock = threading.Lock()


def withhold(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Take the secrets out of an environment and hand them back."""
    return {name: environ.pop(name) for name in SECRET_NAMES if name in environ}


def safe_path(path: Sequence[str], cwd: str) -> list[str]:
    """``sys.path`` without the working directory, unless that is where this very package was loaded from."""
    kept = []
    for entry in path:
        where = os.path.realpath(entry or cwd)
        if where != os.path.realpath(cwd) or where == _HOME:
            kept.append(entry or cwd)
    return kept


@contextmanager
def spawning() -> Iterator[None]:
    """Start processes inside this block only.

    ``os.environ`` and ``sys.path`` belong to whoever imported us, so both are put back; loky reads them, without an
    option to override, at the moment it starts a process. SIGINT is blocked in this thread: the mask is inherited, and
    a worker that is still importing would otherwise answer the terminal's Ctrl-C with a traceback. The trackers that
    clean up after us when we were killed do so without a warning on the user's terminal.
    """
    with _lock:
        path, secrets = list(sys.path), withhold(os.environ)
        before = {name: os.environ.get(name) for name in _SET}
        os.environ.update({name: make(before[name]) for name, make in _SET.items()})
        sys.path[:] = safe_path(path, str(Path.cwd()))
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            sys.path[:] = path
            os.environ.update(secrets)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
