"""Groups: version 1 on the real kernel where we may make them, version 2 on a tree built after its documents."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sage_sandbox.sandbox import cgroup, cgroup_files, cgroup_group, delegation
from sage_sandbox.sandbox.cgroup import GroupUsage, find

MiB = 1 << 20
# os._exit is coverage's while it measures: it would look through all it has, and that within a limit.
_exit = sys.modules["posix"]._exit
UNIFIED = "/sys/fs/cgroup/unified", "/sys/fs/cgroup"


@pytest.fixture(scope="module")
def home():
    found = find(delegate=lambda pid: False)
    if found is None:
        pytest.skip("no cgroup with memory and pids can be made here")
    yield found
    found.close()


@pytest.fixture
def group(home):
    made = home.make("test")
    yield made
    made.kill()
    made.remove()


def start(group, act):
    """A process that joins the group and then acts; its pid. A pipe tells it that it has joined."""
    ready, go = os.pipe()
    pid = os.fork()
    if not pid:
        gc.freeze()  # a collection would write to every object of the tests, and each page of that is charged here
        os.close(go)
        try:
            os.read(ready, 1)
            act()
            _exit(0)
        finally:
            _exit(99)
    os.close(ready)
    group.join(pid)
    os.close(go)
    return pid


def run(group, act):
    """Act in the group; exit code, or -signal."""
    return os.waitstatus_to_exitcode(os.waitpid(start(group, act), 0)[1])


def fork_ten(act, *, hold_until=lambda: None):
    """Ten children that act and then stay until ``hold_until`` returned; how many could be made."""
    stay, leave = os.pipe()
    pids = []
    for _ in range(10):
        try:
            pid = os.fork()
        except OSError:
            break
        if not pid:
            try:
                os.close(leave)
                held = act()
                os.read(stay, 1)
                del held
            finally:
                _exit(0)
        pids.append(pid)
    hold_until()
    os.close(leave)
    for pid in pids:
        os.waitpid(pid, 0)
    return len(pids)


def first_death():
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)


def spin(seconds):
    while time.process_time() < seconds:
        pass


# The real kernel.


def test_allocation_over_the_limit_is_killed_and_counted(group):
    group.limit(64 * MiB, 16)

    assert -signal.SIGKILL == run(group, lambda: bytearray(256 * MiB))
    usage = group.usage()
    assert usage.oom_kills >= 1
    assert 60 * MiB <= usage.max_rss <= 64 * MiB


def test_allocation_below_the_limit_succeeds_and_its_peak_is_kept(group):
    group.limit(64 * MiB, 16)

    assert run(group, lambda: bytearray(32 * MiB)) == 0
    usage = group.usage()
    assert usage.oom_kills == 0
    assert 32 * MiB <= usage.max_rss <= 48 * MiB


def test_ten_processes_share_one_limit(group):
    group.limit(96 * MiB, 32)

    run(group, lambda: fork_ten(lambda: bytearray(24 * MiB), hold_until=first_death))

    assert group.usage().oom_kills >= 1


def test_processes_over_the_limit_are_refused_and_counted(group):
    group.limit(64 * MiB, 4)

    assert run(group, lambda: _exit(fork_ten(lambda: None))) == 3
    assert group.usage().pids_refused == 1


def test_processor_time_of_all_processes_is_counted(group):
    group.limit(64 * MiB, 16)
    run(group, lambda: (spin(0.05), fork_ten(lambda: spin(0.01))))

    assert 0.1 <= group.usage().cpu_s < 5


def test_a_recycled_group_counts_from_zero(group):
    group.limit(64 * MiB, 2)
    run(group, lambda: (spin(0.05), fork_ten(lambda: None), bytearray(256 * MiB)))
    used = group.usage()
    group.limit(64 * MiB, 2)
    group.begin(64 * MiB, 2)
    again = group.usage()

    assert used.oom_kills
    assert used.cpu_s >= 0.05
    assert (0, 0) == (again.oom_kills, again.pids_refused)
    assert again.cpu_s < 0.01
    assert again.max_rss < 4 * MiB


@pytest.mark.parametrize("limits", [(64, 128), (128, 64)], ids=["raised", "lowered"])
def test_limits_change_between_operations(group, limits):
    results = []
    for limit in limits:
        group.limit(limit * MiB, 16)
        results.append(run(group, lambda: bytearray(96 * MiB)))

    assert [0 if limit > 96 else -signal.SIGKILL for limit in limits] == results


def test_files_on_a_tmpfs_count(group, tmp_path):
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("a tmpfs is mounted by root, with unshare(1)")
    script = 'mount -t tmpfs none "$0" && dd if=/dev/zero of="$0/big" bs=1M count=128 2>/dev/null'
    group.limit(64 * MiB, 16)
    run(group, lambda: os.execvp("unshare", ["unshare", "-m", "sh", "-c", script, str(tmp_path)]))

    assert group.usage().oom_kills >= 1


def test_page_cache_of_the_last_operation_is_given_back(group, tmp_path):
    def fill():
        with (tmp_path / "file").open("wb") as file:
            file.write(bytes(24 * MiB))
            os.fsync(file.fileno())

    group.limit(64 * MiB, 16)
    run(group, fill)
    left = group._charged()
    group.limit(64 * MiB, 16)

    assert left > 20 * MiB
    assert group._charged() < 4 * MiB


def test_what_cannot_be_given_back_makes_it_a_new_group(group, monkeypatch):
    group.limit(64 * MiB, 16)
    before = group._places.memory.stat().st_ino
    monkeypatch.setattr(group, "_charged", lambda: 32 * MiB)
    group.limit(64 * MiB, 16)

    assert before != group._places.memory.stat().st_ino
    assert run(group, lambda: bytearray(256 * MiB)) == -signal.SIGKILL


def test_a_process_can_join_by_itself(group):
    ready, go = os.pipe()
    group.limit(64 * MiB, 16)
    pid = os.fork()
    if not pid:
        for fd in group.procs_fds:
            os.write(fd, b"0")
        os.write(go, b"x")
        signal.pause()
    os.read(ready, 1)
    alone = group._pids()
    group.kill()
    os.waitpid(pid, 0)
    os.close(ready)
    os.close(go)

    assert {pid} == alone


def test_kill_ends_a_fork_bomb_and_the_group_is_used_again(group):
    def bomb():
        while True:
            try:
                os.fork()
            except OSError:
                spin(time.process_time() + 0.001)

    group.limit(256 * MiB, 64)
    pid = start(group, bomb)
    while len(group._pids()) < 32:
        pass
    group.kill()

    assert group.empty()
    os.waitpid(pid, 0)
    group.limit(256 * MiB, 64)
    assert run(group, lambda: _exit(fork_ten(lambda: None))) == 10


def test_kill_of_an_empty_group_returns_at_once(group):
    began = time.monotonic()
    group.kill(patience_s=60)

    assert time.monotonic() - began < 1


def test_a_group_with_a_process_is_not_empty_and_not_removed(group):
    pid = start(group, signal.pause)

    assert not group.empty()
    with pytest.raises(OSError, match="busy"):
        group.remove()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert group.empty()


def test_join_of_a_dead_process_raises(group):
    pid = os.fork()
    if not pid:
        _exit(0)
    os.waitpid(pid, 0)

    with pytest.raises(ProcessLookupError):
        group.join(pid)


def test_close_kills_what_is_left_and_removes_every_group():
    home = find(delegate=lambda pid: False)
    if home is None:
        pytest.skip("no cgroup with memory and pids can be made here")
    made = [home.make("one"), home.make("two")]
    pid = start(made[0], signal.pause)
    home.close()

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not any(folder.exists() for group in made for folder in group._places.each())


def test_leftovers_of_dead_owners_are_removed_and_nothing_else(home):
    namespace, pid, started = home._tag.split("-")[1:]
    names = {
        "dead": f"sage-{namespace}-{pid}-{int(started) - 1}-0-123",
        "alive": f"sage-{namespace}-{pid}-{started}-x",
        "of another pid namespace": f"sage-1-{pid}-1-x",
        "not ours": "sagebrush-1-1-1-x",
    }
    folders = {why: home.where / name for why, name in names.items()}
    for folder in folders.values():
        folder.mkdir()
    find(delegate=lambda pid: False)
    left = {why for why, folder in folders.items() if folder.exists()}
    for folder in folders.values():
        if folder.exists():
            folder.rmdir()

    assert {"alive", "of another pid namespace", "not ours"} == left


def test_a_worker_finds_its_own_home_and_leaves_nothing(home):
    code = (
        "from sage_sandbox.sandbox.cgroup import find; h = find(delegate=lambda pid: False); print(h._tag); h.make('x')"
        "; h.close()"
    )
    folder = str(Path(cgroup.__file__).parents[2])
    argv = [sys.executable, "-P", "-c", code]
    done = subprocess.run(argv, env={"PYTHONPATH": folder}, capture_output=True, text=True, check=True)

    assert home._tag != done.stdout.strip()
    assert not list(home.where.glob(done.stdout.strip() + "*"))


def test_version_2_core_files_of_this_kernel(monkeypatch):
    """The memory and pids controllers are bound to version 1 here; joining, looking and killing are the same files."""
    top = next((Path(p) for p in UNIFIED if (Path(p) / "cgroup.subtree_control").exists()), None)
    if top is None or not os.access(top / "cgroup.procs", os.W_OK):
        pytest.skip("no cgroup2 file system that may be written")
    monkeypatch.setattr(cgroup_group.GroupV2, "_prepare", lambda self: None)
    folder = top / f"sage-test-{os.getpid()}"
    group = cgroup_group.GroupV2(cgroup_group.Places(folder, folder, folder))
    pid = start(group, signal.pause)
    joined = group._pids()
    group.kill()
    group.remove()

    assert {pid} == joined
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not folder.exists()


# Version 2, on a tree in a temporary folder.

FILES = {
    "cgroup.procs": "",
    "cgroup.kill": "",
    "memory.oom.group": "0",
    "memory.swap.max": "max",
    "memory.max": "max",
    "memory.current": "0",
    "memory.peak": "0",
    "memory.reclaim": "",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
    "pids.max": "max",
    "pids.current": "0",
    "pids.events": "max 0\n",
    "cpu.stat": "usage_usec 0\nuser_usec 0\nsystem_usec 0\n",
}


class Tree:
    """A cgroup2 file system as far as cgroup.py uses one; a group that hands controllers down holds no process."""

    def __init__(self, top: Path, *, lacking: tuple[str, ...] = ()) -> None:
        self.top = top
        self.lacking = lacking
        self.read_only: set[Path] = set()

    def grow(self, path: Path, controllers: str = "cpu memory pids", handed: str = "", procs: str = "") -> Path:
        path.mkdir(parents=True, exist_ok=True)
        files = {
            **{name: text for name, text in FILES.items() if name not in self.lacking},
            "cgroup.controllers": controllers,
            "cgroup.subtree_control": handed,
            "cgroup.procs": procs,
        }
        for name, text in files.items():
            (path / name).write_text(text)
        return path

    def make(self, path: Path) -> None:
        if path.exists():
            raise FileExistsError(errno.EEXIST, "there already", str(path))
        self._refuse_if(path.parent in self.read_only, errno.EACCES)
        self.grow(path, controllers=(path.parent / "cgroup.subtree_control").read_text())

    def remove(self, path: Path) -> None:
        self._refuse_if(bool((path / "cgroup.procs").read_text().strip()), errno.EBUSY)
        shutil.rmtree(path)

    def write(self, path: Path, text: str) -> None:
        self._refuse_if(path.parent in self.read_only, errno.EACCES)
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        if path.name == "cgroup.subtree_control":
            self._refuse_if(bool((path.parent / "cgroup.procs").read_text().split()), errno.EBUSY)
            text = text.replace("+", "")
        elif path.name == "cgroup.procs":
            self._move(str(os.getpid()), path)
            return
        elif path.name == "cgroup.kill":
            (path.parent / "cgroup.procs").write_text("")
        elif path.name == "memory.reclaim":
            (path.parent / "memory.current").write_text("0")
        path.write_text(text)

    def _move(self, pid: str, target: Path) -> None:
        for procs in self.top.rglob("cgroup.procs"):
            left = [other for other in procs.read_text().split() if other != pid]
            procs.write_text("\n".join([*left, pid] if procs == target else left))

    @staticmethod
    def _refuse_if(refused: bool, code: int) -> None:
        if refused:
            raise OSError(code, os.strerror(code))


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A machine with cgroup2 only: `world.tree`, and `world.place` says in which group we are."""
    return World(tmp_path, monkeypatch)


class World:
    def __init__(self, folder, monkeypatch):
        self.top = folder / "cgroup"
        self.proc = folder / "proc"
        self.tree = Tree(self.top)
        monkeypatch.setattr(cgroup_files, "make_folder", self.tree.make)
        monkeypatch.setattr(cgroup_files, "remove_folder", self.tree.remove)
        monkeypatch.setattr(cgroup_files, "write", self.tree.write)
        self.tree.grow(self.top, handed="cpu memory pids")
        (self.proc / "self" / "ns").mkdir(parents=True)
        (self.proc / "self/ns/pid").touch()
        (self.proc / str(os.getpid())).mkdir()
        (self.proc / str(os.getpid()) / "stat").write_text("1 (a) b) S " + " ".join(["7"] * 30))
        self.mountinfo(f"31 23 0:28 / {self.top} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate")

    def mountinfo(self, *lines):
        (self.proc / "self/mountinfo").write_text("\n".join(["22 27 0:21 / /proc rw - proc proc rw", *lines, ""]))

    def place(self, path):
        (self.proc / "self/cgroup").write_text(f"0::/{path}\n")

    def find(self, delegate=lambda pid: False):
        return find(self.top, self.proc, delegate)

    def alone_in(self, path, **more):
        self.place(path)
        return self.tree.grow(self.top / path, procs=str(os.getpid()), **more)


def test_v2_moves_us_into_a_leaf_and_hands_controllers_down(world):
    scope = world.alone_in("user.slice/run.scope")
    home = world.find()

    assert (2, scope) == (home.version, home.where)
    assert str(os.getpid()) == (scope / "sage-main/cgroup.procs").read_text()
    assert {"memory", "pids"} == set((scope / "cgroup.subtree_control").read_text().split())
    assert ["sage-main"] == [path.name for path in scope.iterdir() if path.is_dir()]


def test_v2_a_worker_born_in_the_leaf_uses_the_group_above(world):
    scope = world.alone_in("run.scope")
    world.find()
    world.place("run.scope/sage-main")

    assert scope == world.find().where


def test_v2_a_group_shared_with_others_is_left_as_it_was(world):
    world.tree.grow(world.top, handed="")
    scope = world.tree.grow(world.top / "session.scope", procs=f"{os.getpid()}\n1")
    world.place("session.scope")

    assert world.find() is None
    assert {str(os.getpid()), "1"} == set((scope / "cgroup.procs").read_text().split())
    assert not (scope / "sage-main").exists()


def test_v2_without_permission_there_is_none(world):
    scope = world.alone_in("run.scope")
    world.tree.read_only = {scope, world.top}

    assert world.find() is None


def test_v2_without_the_controllers_there_is_none(world):
    world.tree.grow(world.top, handed="")
    world.alone_in("run.scope", controllers="cpu")

    assert world.find() is None


def test_v2_asks_the_manager_and_divides_what_it_gave(world):
    world.tree.grow(world.top, handed="")
    world.tree.grow(world.top / "session.scope", procs=f"{os.getpid()}\n1")
    world.place("session.scope")
    asked = []

    def delegate(pid):
        asked.append(pid)
        (world.top / "session.scope/cgroup.procs").write_text("1")
        world.alone_in("user.slice/sage.scope")
        return True

    home = world.find(delegate)

    assert [os.getpid()] == asked
    assert world.top / "user.slice/sage.scope" == home.where


def test_v2_a_manager_that_never_moves_us_is_given_up(world, monkeypatch):
    monkeypatch.setattr(delegation, "PATIENCE_S", 0.01)
    world.tree.grow(world.top, handed="")
    world.tree.grow(world.top / "session.scope", procs=f"{os.getpid()}\n1")
    world.place("session.scope")

    assert world.find(lambda pid: True) is None


def test_v2_falls_back_to_the_nearest_ancestor_that_hands_down(world):
    slice_ = world.tree.grow(world.top / "app.slice", handed="memory pids")
    world.tree.grow(slice_ / "terminal.scope", procs=f"{os.getpid()}\n1")
    world.place("app.slice/terminal.scope")

    assert slice_ == world.find().where


def test_v2_limits_are_written_and_swap_is_off(world):
    world.alone_in("run.scope")
    group = world.find().make("op")
    group.limit(64 * MiB, 16)
    names = ("memory.max", "pids.max", "memory.swap.max", "memory.oom.group")

    assert [str(64 * MiB), "16", "0", "1"] == [(group._folder / name).read_text() for name in names]


def test_v2_usage_is_what_was_added_since_it_began(world):
    world.alone_in("run.scope")
    group = world.find().make("op")
    group.limit(64 * MiB, 16)
    set_counters(group, cpu=7_000_000, oom=3, refused=5, peak=1)
    group.begin(64 * MiB, 16)
    fresh = group.usage()
    set_counters(group, cpu=7_500_000, oom=5, refused=6, peak=9 * MiB)

    assert GroupUsage(0, 0.0, 0, 0) == fresh
    assert GroupUsage(9 * MiB, 0.5, 2, 1) == group.usage()


def set_counters(group, cpu, oom, refused, peak):
    (group._folder / "cpu.stat").write_text(f"usage_usec {cpu}\nuser_usec 1\n")
    (group._folder / "memory.events").write_text(f"oom 9\noom_kill {oom}\n")
    (group._folder / "pids.events").write_text(f"max {refused}\n")
    (group._folder / "memory.peak").write_text(f"{peak}\n")


def test_v2_a_peak_that_cannot_be_reset_makes_it_a_new_group(world, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EINVAL, "before Linux 6.12")

    world.alone_in("run.scope")
    group = world.find().make("op")
    monkeypatch.setattr(os, "pwrite", refuse)
    group.limit(64 * MiB, 16)
    group.begin(64 * MiB, 16)
    set_counters(group, 0, 0, 0, peak=9 * MiB)
    used = group.usage()
    group.limit(64 * MiB, 16)

    assert (9 * MiB, 0) == (used.max_rss, group.usage().max_rss)
    assert str(64 * MiB) == (group._folder / "memory.max").read_text()


def test_v2_a_peak_that_is_read_only_is_read(world, monkeypatch):
    really_open = os.open

    def guarded(path, flags, *rest, **more):
        if str(path).endswith("memory.peak") and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "mode 0444 before Linux 6.12")
        return really_open(path, flags, *rest, **more)

    world.alone_in("run.scope")
    monkeypatch.setattr(os, "open", guarded)
    group = world.find().make("op")
    group.limit(64 * MiB, 16)
    set_counters(group, 0, 0, 0, peak=5 * MiB)

    assert group.usage().max_rss == 5 * MiB


def test_v2_without_a_peak_the_highest_seen_is_kept(world):
    world.tree.lacking = ("memory.peak", "memory.reclaim")
    world.alone_in("run.scope")
    group = world.find().make("op")
    group.limit(64 * MiB, 16)
    seen = []
    for size in (3, 7, 2):
        (group._folder / "memory.current").write_text(str(size * MiB))
        seen.append(group.usage().max_rss // MiB)

    assert [3, 7, 7] == seen


def test_v2_reclaims_before_the_next_operation(world):
    world.alone_in("run.scope")
    group = world.find().make("op")
    group.limit(64 * MiB, 16)
    (group._folder / "memory.current").write_text(str(32 * MiB))
    group.limit(64 * MiB, 16)

    assert str(32 * MiB) == (group._folder / "memory.reclaim").read_text()


def test_v2_kill_uses_the_kernels_own_where_there_is_one(world):
    world.alone_in("run.scope")
    group = world.find().make("op")
    (group._folder / "cgroup.procs").write_text("1")
    group.kill()

    assert group.empty()
    assert (group._folder / "cgroup.kill").read_text() == "1"


def test_v2_kill_without_cgroup_kill_signals_each(world):
    world.tree.lacking = ("cgroup.kill",)
    world.alone_in("run.scope")
    group = world.find().make("op")
    pid = os.fork()
    if not pid:
        signal.pause()
    (group._folder / "cgroup.procs").write_text(f"0\n{pid}\n{dead_pid()}")
    group.kill(patience_s=0.001)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def dead_pid():
    pid = os.fork()
    if not pid:
        _exit(0)
    os.waitpid(pid, 0)
    return pid


def test_a_group_that_cannot_be_prepared_leaves_nothing(world, monkeypatch):
    world.alone_in("run.scope")
    home = world.find()
    world.tree.lacking = ("memory.oom.group",)

    with pytest.raises(FileNotFoundError):
        home.make("op")
    assert ["sage-main"] == [path.name for path in home.where.iterdir() if path.is_dir()]


# Where we are.


@pytest.mark.parametrize(
    ("root", "path", "inside"),
    [
        ("/", "/user.slice/run.scope", "user.slice/run.scope"),
        ("/docker/abc", "/docker/abc", "."),
        ("/docker/abc", "/docker/abc/x", "x"),
        ("/", "/", "."),
        ("/docker/abc", "/", "."),
    ],
)
def test_our_folder_is_found_below_the_mount(world, root, path, inside):
    world.mountinfo(f"31 23 0:28 {root} {world.top} rw shared:4 - cgroup2 cgroup2 rw")
    (world.proc / "self/cgroup").write_text(f"0::{path}\n")

    assert world.top / inside == cgroup._World(world.top, world.proc).folder("")


def test_a_mount_point_with_a_blank_is_read(tmp_path):
    line = rf"31 23 0:28 / {tmp_path}/a\040b rw - cgroup cgroup rw,memory"

    assert {"memory": (Path("/"), tmp_path / "a b")} == dict(cgroup._cgroup_mounts(line, tmp_path))


def test_controllers_mounted_together_are_told_apart(world):
    world.mountinfo(
        f"1 2 0:1 / {world.top}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
        f"1 2 0:1 / {world.top}/memory rw - cgroup cgroup rw,memory",
    )
    (world.proc / "self/cgroup").write_text("3:cpu,cpuacct:/a\n2:memory:/b\n0::/\n")
    here = cgroup._World(world.top, world.proc)

    assert [world.top / "cpu,cpuacct/a", world.top / "memory/b"] == [here.folder("cpuacct"), here.folder("memory")]
    assert world.find() is None  # no pids controller


def test_outside_of_the_cgroup_namespace_there_is_none(world):
    world.place("../../other")

    assert world.find() is None


def test_mounts_elsewhere_do_not_count(world, tmp_path):
    world.alone_in("run.scope")

    assert find(tmp_path / "elsewhere", world.proc) is None


@pytest.mark.parametrize("text", ["", "nonsense", "1 2 3 - cgroup2", "a - b - c"])
def test_find_never_raises(world, text):
    world.place("x")
    (world.proc / "self/mountinfo").write_text(text)

    assert world.find() is None


# systemd, as far as it can be tried without one.


def test_a_user_asks_the_users_manager_with_a_clean_environment():
    bus, command, environment = delegation.systemd_request(42, 1000)

    assert Path("/run/user/1000/bus") == bus
    assert ["/usr/bin/busctl", "--user"] == command[:2]
    assert "sage-sandbox-42.scope fail 3 PIDs au 1 42 Delegate b true" in " ".join(command)
    assert {"PATH", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"} == set(environment)


def test_root_asks_the_systems_manager():
    bus, command, environment = delegation.systemd_request(42, 0)

    assert "--system" in command
    assert f"unix:path={bus}" == environment["DBUS_SYSTEM_BUS_ADDRESS"]


def test_without_a_bus_nobody_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(delegation, "systemd_request", lambda pid, uid: (tmp_path / "no-bus", ["/bin/false"], {}))

    assert not delegation.ask_systemd(1)


@pytest.mark.parametrize(
    ("command", "accepted"),
    [(["/bin/true"], True), (["/bin/false"], False), (["/bin/sleep", "60"], False), (["/nonexistent"], False)],
)
def test_only_a_prompt_yes_is_consent(monkeypatch, command, accepted):
    monkeypatch.setattr(cgroup, "_PATIENCE_S", 0.2)

    assert accepted == delegation._succeeds(command, {})


def test_a_bus_that_is_there_is_asked(monkeypatch, tmp_path):
    class Bus:
        is_socket = staticmethod(lambda: True)

    monkeypatch.setattr(delegation, "systemd_request", lambda pid, uid: (Bus, ["/bin/true"], {}))

    assert delegation.ask_systemd(1)
