"""What the tests of the sandbox share: throw-away processes, and zygotes that are measured."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="arg-type,assignment,method-assign"

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox import throwaway

from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.sandbox import nursery, steps
from sage_sandbox.sandbox.inside import entry, syscalls, wire, zygote
from sage_sandbox.sandbox.supervisor import Supervisor

ROOT = os.geteuid() == 0


@pytest.fixture(scope="session", autouse=True)
def _measured() -> Iterator[None]:
    """What throw-away processes covered counts."""
    yield
    throwaway.merge_coverage()


@pytest.fixture
def in_child():
    """Run a function in a throw-away process: what it returned or raised."""
    return throwaway.in_child


@pytest.fixture(scope="session")
def who() -> steps.Identity:
    try:
        return steps.identity()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def _namespaces(who: steps.Identity) -> None:
    """Skips where this user may not make the namespaces that everything here stands on."""

    def enter() -> None:
        if not who.privileged:
            entry.enter_user_namespace()
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNET)

    try:
        throwaway.in_child(enter)
    except OSError as error:
        pytest.skip(f"user, mount, pid and network namespaces: {error}")
    if not syscalls.landlock_abi():
        pytest.skip("Landlock")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a file in it, for everybody to read."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "notes.txt").write_text("of the project")
    return folder


@pytest.fixture
def supervisor(_namespaces: None, project: Path) -> Iterator[Supervisor]:
    """A supervisor of the test's own."""
    made = Supervisor(str(project))
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(_namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    """One supervisor for a module's operations that do nothing to it; its project is empty."""
    made = Supervisor(str(tmp_path_factory.mktemp("shared")))
    yield made
    made.close()


@pytest.fixture
def forked_zygotes(_namespaces: None, monkeypatch: pytest.MonkeyPatch) -> list[throwaway.Apart]:
    """Zygotes are forks of this process instead of new interpreters, so that what runs in them counts as covered.

    The stderr of their children is the way out of the throw-away process.
    """
    started: list[throwaway.Apart] = []
    plain_send = wire.send

    def start(self: nursery.Zygote, control: socket.socket) -> throwaway.Apart:
        number = control.fileno()
        privileged = self.foundation.privileged

        def serve() -> None:
            wire.send = send_covered
            if not privileged:
                entry.enter_user_namespace()
            # Its children find the way out as their third stream, among what is passed to them.
            zygote.Nursery._become_child = become_child
            zygote.main(number)

        started.append(throwaway.Apart(serve, only=(number,)))
        return started[-1]

    plain_become = zygote.Nursery._become_child

    def become_child(self: zygote.Nursery, passed: list[int]) -> None:
        os.dup2(throwaway.report.fd, passed[3])
        plain_become(self, passed)

    def send_covered(*frame: object) -> None:
        # Who reads this frame may kill us for it.
        throwaway.report.cover()
        plain_send(*frame)

    monkeypatch.setattr(nursery.Zygote, "_start", start)
    return started
