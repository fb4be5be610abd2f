"""Measuring a tree of processes from outside: real processes, and a made-up /proc for what cannot be brought about."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest

import sage_sandbox
from sage_sandbox.sandbox import sampling
from sage_sandbox.sandbox.sampling import Sampler, tree

MiB = 1 << 20
GiB = 1 << 30
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


# A fork of ours would hold whatever the tests before it left in memory. Without site it is not measured, either.
FRESH = """
import signal, sys
sys.path += sys.argv[1:]
import cloudpickle
held = cloudpickle.load(sys.stdin.buffer)()
print(flush=True)
signal.pause()
"""
PLACES = {str(Path(module.__file__ or "").parents[1]) for module in (cloudpickle, sage_sandbox)}


@pytest.fixture
def start():
    """Start a small process that acts, tells us, and stays until it is killed."""
    started = []

    def begin(act):
        argv = [sys.executable, "-I", "-S", "-c", FRESH, *PLACES]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdin
        assert process.stdout
        process.stdin.write(cloudpickle.dumps(act))
        process.stdin.close()
        assert process.stdout.readline()
        return process.pid

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield begin
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    for process in started:
        for member in reversed(tree(process.pid)):
            os.kill(member, signal.SIGKILL)
        with process:
            process.wait()


def fork(act=lambda: None, *, stay=True):
    """A child that acts and stays or exits; its pid, once it has acted."""
    ready, done = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(ready)
            held = act()
            os.write(done, b"x")
            if stay:
                signal.pause()
            del held
        finally:
            os._exit(0)
    os.close(done)
    os.read(ready, 1)
    os.close(ready)
    return pid


def spin(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def sampler(pid, *, limit=GiB, cpu_limit_s=60.0, work_fd=-1, cores=2, draw=lambda: 1.0, **more):
    """A sampler that waits as long as it may, unless the test draws otherwise."""
    return Sampler(pid, work_fd, limit, cpu_limit_s, cores, draw=draw, **more)


def share(pid):
    measured = sampling._measure(pid, "/proc")
    assert measured
    return sampling._share(measured, "/proc")


def filled(size):
    return bytearray(b"x") * size


def shared(size):
    area = mmap.mmap(-1, size)
    area.write(filled(size))
    return area


# Real processes.


def test_children_and_grandchildren_are_in_the_tree(start):
    pid = start(lambda: (fork(fork), fork()))

    assert len(tree(pid)) == 4
    assert sampler(pid).tick().processes == 4


def test_a_tree_is_the_same_without_children_files(start):
    pid = start(lambda: (fork(fork), fork()))

    assert sorted(tree(pid)) == sorted(sampling._tree_by_parents(pid, "/proc"))


def test_children_of_threads_are_in_the_tree(start):
    def fork_and_stay():
        fork()
        signal.pause()

    def fork_in_thread():
        from threading import Thread

        thread = Thread(target=fork_and_stay, daemon=True)
        thread.start()
        while len(tree(os.getpid())) < 2:
            pass

    assert len(tree(start(fork_in_thread))) == 2


def test_a_process_that_is_gone_reads_as_nothing():
    pid = fork(stay=False)
    os.waitpid(pid, 0)
    reading = sampler(pid).tick()

    assert (0, 0, 0.0, False, False) == (
        reading.processes,
        reading.rss,
        reading.cpu_s,
        reading.over_memory,
        reading.over_cpu,
    )


def test_resident_memory_of_all_processes_adds_up(start):
    pid = start(lambda: [fork(lambda: filled(16 * MiB)) for _ in range(3)])
    reading = sampler(pid).tick()

    assert 48 * MiB <= reading.rss < GiB
    assert reading.pss is None
    assert not reading.over_memory
    assert reading.memory == reading.rss


def test_ten_processes_over_the_limit_together_are_found(start):
    pid = start(lambda: [fork(lambda: filled(8 * MiB)) for _ in range(10)])
    reading = sampler(pid, limit=64 * MiB).tick()

    assert reading.over_memory
    assert reading.pss is not None
    assert 80 * MiB <= reading.memory


def test_pages_shared_over_a_fork_count_once(start):
    def share():
        held = filled(32 * MiB)
        for _ in range(4):
            fork()
        return held

    reading = sampler(start(share), limit=100 * MiB).tick()

    assert reading.rss > 160 * MiB
    assert 32 * MiB <= reading.memory < 100 * MiB
    assert not reading.over_memory


def test_shared_memory_counts(start):
    pid = start(lambda: shared(64 * MiB))

    assert sampler(pid, limit=48 * MiB).tick().over_memory


def test_a_mapped_file_does_not_count(start, tmp_path):
    def map_file():
        with file.open("rb") as opened:
            area = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
        return area, sum(area[:: mmap.PAGESIZE])

    file = tmp_path / "file"
    file.write_bytes(bytes(64 * MiB))
    reading = sampler(start(map_file), limit=48 * MiB).tick()

    assert reading.rss > 64 * MiB
    assert not reading.over_memory


def test_files_in_the_work_folder_count(start):
    folder = Path("/dev/shm")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        pytest.skip("no tmpfs at /dev/shm")
    pid, work = start(lambda: None), os.open(folder, os.O_RDONLY)
    before = sampler(pid, work_fd=work).tick()
    file = folder / f"sage-test-{os.getpid()}"
    file.write_bytes(bytes(32 * MiB))
    after = sampler(pid, work_fd=work, limit=before.work + 32 * MiB).tick()
    file.unlink()
    os.close(work)

    assert after.work - before.work >= 32 * MiB
    assert after.over_memory


def test_an_undumpable_process_is_measured_without_its_share(start, monkeypatch):
    """As an ordinary user sees a Python operation; root may read everything, so the refusal is played."""

    def refuse(path):
        if path.endswith("smaps_rollup"):
            raise PermissionError(13, "not yours", path)
        return really_read(path)

    really_read = sampling._read_or_raise
    monkeypatch.setattr(sampling, "_read_or_raise", refuse)
    pid = start(lambda: (filled(32 * MiB), shared(32 * MiB)))

    assert sampler(pid, limit=60 * MiB).tick().over_memory
    assert not sampler(pid, limit=256 * MiB).tick().over_memory
    assert 64 * MiB <= share(pid) < 128 * MiB


def end_first_thread(act):
    """End the first thread of this process; another one acts and stays."""
    import ctypes
    import threading

    libc = ctypes.CDLL(None)
    ready, done = os.pipe()

    def second():
        while not os.path.exists(f"/proc/{os.getpid()}/statm") or sampling._resident(f"/proc/{os.getpid()}"):
            pass
        held = act()
        os.write(done, b"x")
        signal.pause()
        del held

    if not os.fork():
        threading.Thread(target=second).start()
        libc.syscall(93 if os.uname().machine == "aarch64" else 60, 0)  # exit(2) of one thread
    os.read(ready, 1)


def test_a_process_without_its_first_thread_is_measured(start):
    pid = start(lambda: end_first_thread(lambda: filled(64 * MiB)))
    child = tree(pid)[1]
    reading = sampler(pid, limit=48 * MiB).tick()

    assert 0 == sampling._resident(f"/proc/{child}")
    assert reading.over_memory
    assert 64 * MiB <= share(child) < 128 * MiB


def test_children_of_a_process_without_its_first_thread_are_in_the_tree(start):
    pid = start(lambda: end_first_thread(fork))

    assert 3 == len(tree(pid))


def test_processor_time_of_the_living_and_of_the_reaped_counts(start):
    def work():
        spin(0.1)
        os.waitpid(fork(lambda: spin(0.1), stay=False), 0)
        fork(lambda: spin(0.1))

    reading = sampler(start(work), cpu_limit_s=0.25).tick()

    assert 0.27 <= reading.cpu_s < 5
    assert reading.over_cpu


def test_processor_time_does_not_fall_when_children_are_reaped_unseen(start):
    """With SIGCHLD ignored nobody's cutime grows (wait(2)); what was seen of a process stays counted."""

    def ignore_children():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        fork(lambda: spin(0.1))

    pid = start(ignore_children)
    watch = sampler(pid)
    before = watch.tick()
    child = tree(pid)[1]
    os.kill(child, signal.SIGKILL)
    while len(tree(pid)) > 1:
        pass
    after = watch.tick()

    assert before.cpu_s >= 0.09
    assert (1, 2) == (after.processes, before.processes)
    assert after.cpu_s >= before.cpu_s


IGNORED = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
# SA_NOCLDWAIT is 2; /proc/<pid>/status does not show it.
NO_WAIT = """
import ctypes
action = (ctypes.c_ulong * 19)()
action[17] = 2
assert ctypes.CDLL(None, use_errno=True).sigaction(17, action, None) == 0
"""


def reap_unseen(how, life_s, total_s):
    """Children one after the other that burn and are reaped by the kernel; what they used is written on stdout."""
    exec(how, {"signal": signal})
    ended, mine = os.pipe()
    used = 0.0
    if os.fork():
        return
    exec(how, {"signal": signal})
    while used < total_s:
        if not os.fork():
            spin(life_s)
            os.write(mine, f"{time.process_time():<12.9f}"[:12].encode())
            os._exit(0)
        used += float(os.read(ended, 12))
    os._exit(0)


@pytest.mark.parametrize("how", [IGNORED, NO_WAIT], ids=["ignored", "no wait"])
@pytest.mark.parametrize("life_s", [0.003, 0.012, 0.05])
def test_processor_time_of_children_that_nobody_waits_for_is_sampled(start, how, life_s):
    """Their time is added to nobody's (wait(2)): of 1.5 s a third at least is found, and no more than twice."""
    if how == NO_WAIT and ctypes.sizeof(ctypes.c_long) != 8:
        pytest.skip("the layout of struct sigaction is that of 64 bits")
    pid = start(lambda: reap_unseen(how, life_s, 1.5))
    watch = sampler(pid)
    reading = watch.tick()
    while reading.processes > 1:
        time.sleep(reading.next_s)
        reading = watch.tick()

    assert 0.5 <= reading.cpu_s < 4


def test_a_tick_of_five_processes_is_cheap(start):
    watch = sampler(start(lambda: [fork() for _ in range(4)]))
    costs = []
    for _ in range(100):
        began = time.perf_counter()
        watch.tick()
        costs.append(time.perf_counter() - began)

    assert sorted(costs)[10] < 0.001  # 0.15 ms here; generous to a loaded machine


# A made-up /proc.


def put(
    proc, pid, *, parent=1, pages=0, times=(0, 0, 0, 0), started=1, children=None, rollup=None, status="", state="S",
    ran=None,
):  # fmt: skip
    """One process in a made-up /proc; times in clock ticks: utime, stime, cutime, cstime."""
    folder = proc / str(pid)
    (folder / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
    fields = [state, str(parent), *["0"] * 9, *map(str, times), "0", "0", "1", "0", str(started), "0"]
    (folder / "stat").write_text(f"{pid} (a) (b) " + " ".join(fields))
    (folder / "statm").write_text(f"9999 {pages} 0 0 0 0 0")
    (folder / "status").write_text(status)
    if children is not None:
        (folder / "task" / str(pid) / "children").write_text(children)
    if rollup is not None:
        (folder / "smaps_rollup").write_text(rollup)
    if ran is not None:
        (folder / "schedstat").write_text(ran)


def test_without_children_files_parents_are_followed(tmp_path):
    for pid, parent in ((10, 1), (11, 10), (12, 11), (13, 1)):
        put(tmp_path, pid, parent=parent)

    assert [10, 11, 12] == tree(10, str(tmp_path))


def test_a_process_adopted_while_we_look_counts_once(tmp_path):
    put(tmp_path, 10, children="11 12 ")
    put(tmp_path, 11, children="12 ")
    put(tmp_path, 12, children="")

    assert [10, 11, 12] == tree(10, str(tmp_path))


def test_a_process_that_vanishes_between_two_files_is_left_out(tmp_path):
    put(tmp_path, 10, children="11 12 ", pages=4, rollup="Rss: 16 kB\nPss: 8 kB\nPss_File: 2 kB\n")
    put(tmp_path, 11, pages=2)
    (tmp_path / "11/statm").unlink()
    reading = sampler(10, limit=1, proc=str(tmp_path)).tick()

    assert (2, 4 * PAGE, 6 * 1024) == (reading.processes, reading.rss, reading.pss)


def test_a_reused_pid_is_another_process(tmp_path):
    watch = sampler(10, proc=str(tmp_path))
    put(tmp_path, 10, children="11 ")
    put(tmp_path, 11, times=(TICK, 0, 0, 0), started=5)
    watch.tick()
    put(tmp_path, 11, times=(TICK, 0, 0, 0), started=6)

    assert watch.tick().cpu_s == 2.0


def test_processor_time_stays_right_over_thousands_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "_GONE_MAX", 8)
    watch = sampler(10, proc=str(tmp_path))
    put(tmp_path, 10, children="11 ")
    for started in range(49):
        put(tmp_path, 11, times=(TICK // 10, 0, 0, 0), started=started)
        watch.tick()
    put(tmp_path, 11, times=(TICK // 10, 0, 0, 0), started=49)

    assert watch.tick().cpu_s == pytest.approx(5.0)
    assert len(watch._cpu._gone) <= 9


@pytest.mark.parametrize(
    ("headroom", "cores", "pause"),
    [
        (0.25 * GiB, 1, 0.1),
        (0.25 * GiB, 2, 0.05),
        (0.025 * GiB, 1, 0.01),
        (1 * MiB, 4, 0.002),
        (-1 * MiB, 1, 0.002),
        (64 * GiB, 1, 0.1),
        (0.25 * GiB, 0, 0.1),
    ],
)
def test_the_pause_is_as_long_as_the_headroom_allows(tmp_path, headroom, cores, pause):
    put(tmp_path, 10, children="", pages=1)
    limit = PAGE + int(headroom)

    assert sampler(10, limit=limit, cores=cores, proc=str(tmp_path), clock=lambda: 0.0).tick().next_s == pytest.approx(
        pause, rel=0.01
    )


@pytest.mark.parametrize(("drawn", "pause"), [(0.0, 0.05), (0.5, 0.075), (1.0, 0.1)])
def test_up_to_half_of_the_pause_is_left_to_chance(tmp_path, drawn, pause):
    put(tmp_path, 10, children="", pages=1)
    watch = sampler(10, limit=64 * GiB, proc=str(tmp_path), clock=lambda: 0.0, draw=lambda: drawn)

    assert watch.tick().next_s == pytest.approx(pause)


def test_little_processor_time_left_shortens_the_pause(tmp_path):
    put(tmp_path, 10, children="", times=(TICK, TICK, TICK, TICK))
    watch = sampler(10, cpu_limit_s=4.02, cores=2, proc=str(tmp_path), clock=lambda: 0.0)

    assert watch.tick().next_s == pytest.approx(0.01)


def test_a_costly_tick_is_not_repeated_at_once(tmp_path):
    put(tmp_path, 10, children="", pages=1)
    moments = iter((0.0, 0.02))
    watch = sampler(10, limit=2 * PAGE, proc=str(tmp_path), clock=lambda: next(moments))

    assert watch.tick().next_s == pytest.approx(0.06)
    shutil.rmtree(tmp_path / "10")


class Beat:
    """A sampler over a made-up /proc, ticked every 20 ms; two children a gap, each there at most once."""

    def __init__(self, proc, **more):
        self.proc = proc
        self.now = 0.0
        self.started = 0
        put(proc, 10, children="")
        self.watch = sampler(10, proc=str(proc), clock=lambda: self.now, **more)
        self.reading = self.watch.tick()

    def tick(self, children="11 12 ", **more):
        """One gap further, with new processes."""
        self.started += 1
        self.now += 0.02
        put(self.proc, 10, children=children)
        for pid in children.split():
            put(self.proc, int(pid), started=self.started, **more)
        self.reading = self.watch.tick()
        return self.reading


def test_processes_seen_at_work_once_count_for_the_gap(tmp_path):
    beat = Beat(tmp_path)
    for _ in range(500):
        beat.tick(state="R")
    beat.tick("")

    # 500 gaps of 20 ms on two cores are 20 s; two deviations of 1000 samples of 20 ms are 1.26 s.
    assert beat.reading.cpu_s == pytest.approx(20 - 2 * 0.02 * 1000**0.5)


def test_processes_that_sleep_whenever_they_are_seen_count_with_what_they_tell(tmp_path):
    beat = Beat(tmp_path)
    for _ in range(100):
        beat.tick(state="S")

    assert 0 == beat.reading.cpu_s


def test_more_processes_at_work_than_cores_count_as_the_cores(tmp_path):
    beat = Beat(tmp_path)
    for _ in range(500):
        beat.tick("11 12 13 14 15 16 17 18 ", state="R")
    beat.tick("")

    assert 18 < beat.reading.cpu_s <= 20


def test_a_process_that_vanishes_between_list_and_look_was_at_work(tmp_path):
    beat = Beat(tmp_path)
    for _ in range(100):
        beat.now += 0.02
        put(tmp_path, 10, children="11 ")
        beat.reading = beat.watch.tick()

    assert beat.reading.cpu_s == pytest.approx(2 - 2 * 0.02 * 10)


@pytest.mark.parametrize(
    ("ran", "least", "most"),
    [
        ("0 0 0", 0, 0),  # never yet
        ("0 9000000 1", 9, 10),  # in its first slice
        ("3000000 9000000 2", 2.2, 2.5),  # a quarter of the time
        ("3000000 0 1", 9, 10),
    ],
)
def test_waiting_for_a_core_is_not_work(tmp_path, ran, least, most):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/schedstat").write_text("1 1 1")
    beat = Beat(tmp_path)
    for _ in range(500):
        beat.tick("11 ", state="R", ran=ran)
    beat.tick("")

    assert least <= beat.reading.cpu_s <= most


def test_a_kernel_that_keeps_no_account_of_waiting_counts_it_as_work(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/schedstat").write_text("0 0 0")
    beat = Beat(tmp_path)
    for _ in range(500):
        beat.tick("11 ", state="R", ran="0 0 0")

    assert beat.reading.cpu_s > 9


def test_a_process_that_told_its_time_counts_no_more_than_a_gap_beyond_it(tmp_path):
    beat = Beat(tmp_path, cores=1)
    for told in range(100):
        beat.started = 0
        beat.tick("11 ", state="R", times=(told, 0, 0, 0))
    assert beat.reading.cpu_s == 99 / TICK
    beat.tick("")

    assert 99 / TICK <= beat.reading.cpu_s <= 99 / TICK + 0.02


def test_a_process_that_is_missed_once_is_not_counted_twice(tmp_path):
    beat = Beat(tmp_path)
    for _ in range(50):
        beat.started = 0
        beat.tick("11 ", state="R", times=(TICK, 0, 0, 0))
        beat.tick("")

    assert 1 <= beat.reading.cpu_s <= 1.04


def test_while_processes_come_and_go_the_pauses_are_short(tmp_path):
    beat = Beat(tmp_path)

    assert sampling.CHURN_S == beat.tick(state="R").next_s
    assert sampling.CHURN_S == beat.tick(state="R").next_s
    assert sampling.CHURN_S == beat.tick("").next_s
    assert sampling.LONGEST_S == beat.tick("").next_s
