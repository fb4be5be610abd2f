"""Asking whoever manages the machine's control groups for one of our own: systemd."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

PATIENCE_S: Final = 2.0
BUSCTL: Final = "/usr/bin/busctl"


def systemd_request(pid: int, uid: int) -> tuple[Path, list[str], dict[str, str]]:
    """How to ask systemd for a delegated scope around ``pid``: the bus socket, the command, its whole environment.

    org.freedesktop.systemd1(5), StartTransientUnit; root asks the system's manager, a user their own. That a user's
    manager takes a process from a login session's scope needs systemd 238.
    """
    runtime = f"/run/user/{uid}"
    bus = Path("/run/dbus/system_bus_socket" if uid == 0 else f"{runtime}/bus")
    object_ = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
    properties = ("3", "PIDs", "au", "1", str(pid), "Delegate", "b", "true", "CollectMode", "s", "inactive-or-failed")
    command = [
        *(BUSCTL, "--system" if uid == 0 else "--user", "--quiet", "call", *object_, "StartTransientUnit"),
        *("ssa(sv)a(sa(sv))", f"sage-sandbox-{pid}.scope", "fail", *properties, "0"),
    ]
    environment = {"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": runtime}
    environment["DBUS_SYSTEM_BUS_ADDRESS" if uid == 0 else "DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={bus}"
    return bus, command, environment


def ask_systemd(pid: int) -> bool:
    """Ask systemd for a delegated scope around ``pid``; False where there is no systemd, no bus or no consent."""
    bus, command, environment = systemd_request(pid, os.getuid())
    if not (os.access(command[0], os.X_OK) and bus.is_socket()):
        return False
    return _succeeds(command, environment)


def _succeeds(command: list[str], environment: dict[str, str]) -> bool:
    try:
        done = subprocess.run(
            command, env=environment, cwd="/", timeout=PATIENCE_S, check=False, stdin=-3, stdout=-3, stderr=-3
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
