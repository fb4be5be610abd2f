"""What a process of ours is born into: a safe module path, no secrets, no share in the terminal's Ctrl-C.

Measured: with a project as working directory, loky's workers and resource trackers executed that project's
``loky/__init__.py``, ``json.py`` and ``pickle.py``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sage_sandbox.policy import SECRET_NAMES

_HOME: Final = str(Path(__file__).resolve().parents[2])
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
    a worker that is still importing would otherwise answer the terminal's Ctrl-C with a traceback.
    """
    with _lock:
        path, secrets = list(sys.path), withhold(os.environ)
        safepath = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"
        sys.path[:] = safe_path(path, str(Path.cwd()))
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            sys.path[:] = path
            os.environ.update(secrets)
            if safepath is None:
                del os.environ["PYTHONSAFEPATH"]
            else:
                os.environ["PYTHONSAFEPATH"] = safepath
