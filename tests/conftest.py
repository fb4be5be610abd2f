"""What all tests share: nothing of the user's, and a header that says which kernel they ran on."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# The benchmarks are a package of the checkout. Last, so that what is tested is the installed package.
sys.path.append(str(Path(__file__).parents[1]))

settings.register_profile("sage", deadline=None, database=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("sage")

_OURS = pytest.StashKey[str]()
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_CREATE_RULESET_VERSION = 1
_PR_SET_DUMPABLE = 4


def pytest_configure(config: pytest.Config) -> None:
    """A folder for temporary files that no other session cleans: sessions side by side take each other's away."""
    if config.option.basetemp is None:
        config.option.basetemp = config.stash[_OURS] = tempfile.mkdtemp(prefix="sage-tests-")
    # A shell has what it starts in the background ignore SIGINT, nohup(1) SIGHUP, and that is inherited: what a test
    # starts would not end by them.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """What passed leaves nothing; what failed can be looked at."""
    folder = session.config.stash.get(_OURS, "")
    if folder and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        shutil.rmtree(folder, ignore_errors=True)


def pytest_report_header() -> list[str]:
    """The kernel features of this machine, for reading skips."""
    tools = {tool: shutil.which(tool) or "-" for tool in ("git", "bwrap", "setpriv", "node")}
    namespaces = _read("/proc/sys/user/max_user_namespaces")
    restricted = _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    return [
        f"kernel: {platform.release()} {platform.machine()}, uid {os.geteuid()}, {os.cpu_count()} cores",
        f"sandbox: landlock ABI {_landlock_abi()}, cgroup {_cgroup_version()}",
        f"user namespaces: at most {namespaces}, restricted by AppArmor: {restricted}",
        "tools: " + ", ".join(f"{tool} {path}" for tool, path in tools.items()),
    ]


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder of the test's own: what a user has configured or granted is neither read nor written."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith(("SAGE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(autouse=True)
def dumpable() -> Iterator[None]:
    """A verb that is called in this process makes it undumpable, and its /proc unreadable to an ordinary user."""
    yield
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _landlock_abi() -> str:
    abi = ctypes.CDLL(None, use_errno=True).syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    return str(abi) if abi > 0 else f"- ({os.strerror(ctypes.get_errno())})"


def _cgroup_version() -> str:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return "v2"
    return "v1" if Path("/sys/fs/cgroup/memory").exists() else "-"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return "-"
