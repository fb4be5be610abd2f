"""/proc: an operation finds itself there and nobody else, and nothing of the machine."""

from __future__ import annotations

import os
import socket

import pytest
from escape.attempt import Bench, Did, Refused, needs_root, reached

READ = """
def act(path):
    with open(path, "rb") as file:
        return len(file.read(1 << 16)) > 0
"""
OPEN_TO_WRITE = """
def act(path):
    os.close(os.open(path, os.O_WRONLY))
"""
LIST = """
def act(path):
    return len(os.listdir(path))
"""


def test_no_other_process_is_listed(bench: Bench) -> None:
    bench.needs_proc()
    pids = "def act():\n    return sorted(int(name) for name in os.listdir('/proc') if name.isdecimal())"
    outside = bench.outside(pids)

    assert isinstance(outside, Did)
    assert os.getpid() in outside.value
    assert Did([1]) == bench.inside(pids)


@pytest.mark.parametrize("file", ["environ", "cmdline", "maps", "status", "root", "cwd", "fd", "mountinfo"])
def test_a_process_of_the_host_is_not_there(bench: Bench, file: str) -> None:
    look = "def act(path):\n    return os.path.basename(path) in os.listdir(os.path.dirname(path))"
    path = {"path": f"/proc/{os.getpid()}/{file}"}

    assert Did(True) == bench.outside(look, path)
    assert Refused("ENOENT") == bench.inside(look, path)


@pytest.mark.parametrize("file", ["environ", "mem", "maps", "auxv"])
def test_the_first_process_is_unreadable_for_a_command(bench: Bench, file: str) -> None:
    """Pid 1 is the reaper that holds the result socket; to its command it does not even exist."""
    here = f"/proc/{os.getpid()}/{file}"
    outcome = bench.command("sh", "-c", f"exec 3</proc/1/{file}")

    assert Did(None) == bench.outside("def act(path):\n    os.close(os.open(path, os.O_RDONLY))", {"path": here})
    assert "error" == outcome.reason
    assert "No such file" in outcome.stderr.decode()


@pytest.mark.parametrize("path", ["/proc/1/root/home", "/proc/self/root/home", "/proc/1/cwd/../home"])
def test_the_root_link_of_a_process_leads_to_no_other_root(bench: Bench, path: str) -> None:
    outside = bench.outside(LIST, {"path": "/proc/self/root/home"})

    assert isinstance(outside, Did)
    assert bench.inside(LIST, {"path": path}) in (Refused("ENOENT"), Refused("EACCES"))


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/osrelease",
        "/proc/sys/kernel/random/boot_id",
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/proc/mounts",
        "/proc/stat",
        "/proc/version",
        "/proc/cmdline",
        "/proc/modules",
        "/proc/net/route",
        "/proc/filesystems",
    ],
)
def test_a_file_about_the_machine_is_not_there(bench: Bench, path: str) -> None:
    if bench.outside(READ, {"path": path}) != Did(True):
        pytest.skip(f"this kernel has no {path}")
    inside = bench.inside(READ, {"path": path})

    assert inside in (Refused("ENOENT"), Refused("EACCES")), path


def test_no_socket_of_the_host_is_listed(bench: Bench) -> None:
    bench.needs_proc()
    names = "def act():\n    return open('/proc/self/net/unix').read().count('sage-escape-listed')"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0sage-escape-listed-{os.getpid()}")

        assert Did(1) == bench.outside(names)
        assert Did(0) == bench.inside(names)


@pytest.mark.parametrize(
    "path",
    ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches"],
)
def test_a_switch_of_the_kernel_is_not_there(bench: Bench, path: str) -> None:
    # Opened only. A user is told EACCES or EPERM outside: the file is there.
    bench.refuses(OPEN_TO_WRITE, "ENOENT", {"path": path})


@pytest.mark.parametrize(
    "file", ["oom_score_adj", "comm", "coredump_filter", "timerslack_ns", "uid_map", "setgroups", "loginuid"]
)
def test_a_switch_of_the_own_process_is_not_written(bench: Bench, file: str) -> None:
    path = {"path": f"/proc/self/{file}"}
    outside = bench.outside(OPEN_TO_WRITE, path)

    reached(outside, "EROFS")
    if outside == Refused("ENOENT"):
        pytest.skip(f"this kernel has no /proc/self/{file}")
    assert isinstance(bench.inside(OPEN_TO_WRITE, path), Refused)


def test_the_own_memory_is_not_reached_through_a_file(bench: Bench) -> None:
    """It would get around a page's protection: the process is undumpable, so its files are root's."""
    bench.needs_proc()
    mem = "def act():\n    os.close(os.open('/proc/self/mem', os.O_RDWR))"
    outside, inside = bench.outside(mem), bench.inside(mem)

    assert Did() == outside
    assert inside in (Refused("EACCES"), Refused("EROFS"))


def test_no_descriptor_of_the_supervisor_is_reached(bench: Bench) -> None:
    look = "def act(path):\n    return sorted(os.listdir(path))"
    outside = bench.outside(look, {"path": f"/proc/{os.getpid()}/fd"})

    assert isinstance(outside, Did)
    assert Refused("ENOENT") == bench.inside(look, {"path": f"/proc/{os.getppid()}/fd"})


def test_a_namespace_of_the_host_is_not_there(bench: Bench) -> None:
    enter = "def act(path):\n    os.close(os.open(path, os.O_RDONLY))"
    path = {"path": f"/proc/{os.getpid()}/ns/mnt"}

    assert Did() == bench.outside(enter, path)
    assert Refused("ENOENT") == bench.inside(enter, path)


def test_no_second_proc_is_mounted(bench: Bench) -> None:
    mount = "def act():\n    return call('mount', b'proc', b'/tmp', b'proc', 0, None)"

    # A user may not, in a pid namespace that is not that user's.
    bench.refuses(mount, "EPERM", own_namespaces=True)


@needs_root("read another's environment")
def test_the_environment_of_init_is_not_there(bench: Bench) -> None:
    inside = bench.inside("def act():\n    return open('/proc/1/environ').read()")

    assert Did(True) == bench.outside("def act():\n    return bool(open('/proc/self/environ').read())")
    # For a Python operation pid 1 is itself, forked from a zygote that was started without any environment.
    assert inside in (Did(""), Refused("EACCES"))
