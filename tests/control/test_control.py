"""Real sockets between real processes: a run that is asked, waited for, cancelled, stopped and killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from commands import PACKAGE_FOLDER
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.control import asking, door
from sage_sandbox.control import server as serving
from sage_sandbox.control.asking import Cancelled, NotAnswering, NotCancelled, NotRunning, ask, cancel
from sage_sandbox.control.door import Door
from sage_sandbox.control.lines import ANSWER_MAX, REQUEST_MAX, address
from sage_sandbox.control.server import RETRY_S, VISITORS_MAX, Server
from sage_sandbox.disk import places, sockets
from sage_sandbox.disk.places import project_place
from sage_sandbox.errors import SageError

ID = "0123456789abcdef" * 2
STATUS = {"do": "status"}
WAIT = {"do": "wait"}
CANCEL = {"do": "cancel", "save": True}
LAST = {"status": "cancelled", "cancelledAt": "2030-01-02T03:04:05.678Z", "checkpointSaved": True}
NAME = address(ID, "f")

RUN = """
import signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from sage_sandbox.control.server import Server
from sage_sandbox.disk import places
places.RUN_USER = Path(sys.argv[2])

class Run:
    def cancel(self, save): pass
    def status(self): return {"phase": "p"}

server = Server.open(sys.argv[3], "f", handler=Run())
print("ready", flush=True)
sys.stdin.readline()
server.finish({"status": "completed", "cancelledAt": "now", "checkpointSaved": True})
"""


def told_to_a_stranger(path):
    """What a process of another user hears when it asks; forked: the interpreter may be out of that user's reach."""
    read, write = os.pipe()
    if not (pid := os.fork()):
        try:
            os.setgroups([])
            os.setresgid(10001, 10001, 10001)
            os.setresuid(10001, 10001, 10001)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                os.write(write, b"connected ")
                with suppress(OSError):
                    sock.send(b'{"do": "status"}\n')
                    os.write(write, sock.recv(100) or b"nothing")
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read, "rb") as pipe:
        return pipe.read()


class Run:
    """A run as the server sees it: it notes what it is told."""

    def __init__(self):
        self.cancelled = []
        self.told = threading.Event()

    def cancel(self, save):
        self.cancelled.append(save)
        self.told.set()

    def status(self):
        return {"phase": "research", "cancelled": len(self.cancelled)}


@pytest.fixture
def tmp_path(tmp_path_factory):
    """A short one, whatever the test is called: a socket's path has room for 107 bytes (unix(7))."""
    return tmp_path_factory.mktemp("s")


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    """The folder where sockets are: no other one is looked at."""
    monkeypatch.setattr(places, "RUN_USER", tmp_path / "nowhere")
    monkeypatch.setattr(places, "TEMPORARY", tmp_path / "temporary")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "temporary").mkdir(mode=0o700)
    return tmp_path / "sage-sandbox"


@pytest.fixture
def handler():
    return Run()


@pytest.fixture
def server(handler):
    made = Server.open(ID, "f", handler=handler)
    yield made
    made.close()


@pytest.fixture
def elsewhere():
    with ThreadPoolExecutor(8) as pool:
        yield pool


@contextmanager
def connected(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        yield sock


@contextmanager
def process(tmp_path):
    """A run in a process of its own, which ends when a line is sent to it."""
    argv = [sys.executable, "-P", "-c", RUN, PACKAGE_FOLDER, str(tmp_path / "nowhere"), ID]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout.readline() == "ready\n"  # type: ignore[union-attr]
        try:
            yield started
        finally:
            started.kill()


def said(sock):
    data = b""
    with suppress(ConnectionResetError):  # what the other one left unread
        while more := sock.recv(1 << 17):
            data += more
    return data


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def now_waiting(server, count):
    """Wait until that many have asked for the end."""
    while sum(visitor.waits for visitor in tuple(server._visitors)) < count:
        os.sched_yield()


def speak(path, data):
    """Send bytes as they are; what comes back."""
    with connected(path) as sock:
        with suppress(BrokenPipeError):
            sock.sendall(data)
        return said(sock)


@st.composite
def names(draw):
    return draw(st.text("0123456789abcdef", min_size=32, max_size=32)), draw(
        st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True)
    )


class TestTheAddress:
    @given(names(), names())
    def test_differs_where_project_or_feature_do(self, one, other):
        assert (one == other) == (address(*one) == address(*other))

    def test_is_the_same_in_every_version(self):
        assert "aee821b53dd34d5faebc98fcef7ceb77.sock" == address("0" * 32, "f" * 64)

    def test_lies_in_a_folder_of_the_users_alone(self, server, runtime):
        found = os.lstat(runtime / NAME)

        assert 0o700 == stat.S_IMODE(runtime.stat().st_mode)
        assert (True, 0o600) == (stat.S_ISSOCK(found.st_mode), stat.S_IMODE(found.st_mode))

    def test_may_have_a_path_longer_than_sockets_have(self, handler, tmp_path, monkeypatch):
        deep = tmp_path / ("d" * 200)
        deep.mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
        server = Server.open(ID, "f", handler=handler)

        assert "research" == ask(ID, "f", STATUS, timeout_s=20)["phase"]  # type: ignore[index]
        server.close()

    def test_is_usable_whatever_the_umask(self, handler, runtime):
        before = os.umask(0o777)
        try:
            server = Server.open(ID, "f", handler=handler)
        finally:
            os.umask(before)

        assert ask(ID, "f", STATUS, timeout_s=20)
        server.close()


class TestARun:
    def test_says_how_it_stands(self, server):
        assert {"phase": "research", "cancelled": 0} == ask(ID, "f", STATUS, timeout_s=20)

    def test_tells_its_end_to_all_who_wait_or_cancelled(self, server, handler, elsewhere):
        waiting = [elsewhere.submit(ask, ID, "f", request, timeout_s=20) for request in (WAIT, CANCEL, WAIT)]
        now_waiting(server, 3)
        server.finish(LAST)

        assert [LAST] * 3 == [asked.result() for asked in waiting]
        assert [True] == handler.cancelled

    @pytest.mark.parametrize("save", [True, False])
    def test_is_told_at_once_that_it_is_cancelled(self, server, handler, elsewhere, save):
        asked = elsewhere.submit(ask, ID, "f", {"do": "cancel", "save": save}, timeout_s=20)

        assert handler.told.wait(20)
        assert ([save], False) == (handler.cancelled, asked.done())
        server.finish(LAST)
        assert LAST == asked.result()

    def test_takes_its_socket_away_when_it_ends(self, server, runtime):
        server.finish(LAST)

        assert [] == list(runtime.iterdir())
        assert ask(ID, "f", WAIT, timeout_s=20) is None

    def test_ends_once(self, server, elsewhere):
        waiting = elsewhere.submit(ask, ID, "f", WAIT, timeout_s=20)
        now_waiting(server, 1)
        server.finish(LAST)
        server.finish({})
        server.close()

        assert LAST == waiting.result()

    def test_that_ends_without_a_result_says_so(self, server, elsewhere):
        waiting = elsewhere.submit(ask, ID, "f", WAIT, timeout_s=20)
        now_waiting(server, 1)
        server.close()

        assert {"error": "the run ended without a result"} == waiting.result()

    def test_answers_also_who_asked_at_the_last_moment(self, server, handler, runtime):
        held, go = threading.Event(), threading.Event()
        handler.status = lambda: (held.set(), go.wait(20), {})[-1]  # type: ignore[func-returns-value]
        with ExitStack() as stack:
            first, early, silent, late = (stack.enter_context(connected(runtime / NAME)) for _ in range(4))
            first.sendall(b'{"do": "status"}\n')
            assert held.wait(20)
            early.sendall(b'{"do": "wait"}\n')
            late.sendall(b'{"do": "cancel", "save": false}\n')
            ending = threading.Thread(target=server.finish, args=(LAST,))
            ending.start()
            while server._last is None:
                os.sched_yield()
            go.set()

            assert [LAST, LAST] == [json.loads(said(sock)) for sock in (early, late)]
            assert (b"{}\n", b"") == (said(first), said(silent))
            ending.join()
        assert [] == handler.cancelled

    def test_whose_status_fails_says_so_and_listens_on(self, server, handler):
        handler.status = lambda: 1 / 0

        assert {"error": "ZeroDivisionError: division by zero"} == ask(ID, "f", STATUS, timeout_s=20)
        del handler.status
        assert "research" == ask(ID, "f", STATUS, timeout_s=20)["phase"]  # type: ignore[index]

    def test_leaves_signals_to_the_main_thread(self, server, handler):
        masks = []
        handler.status = lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])) or {}  # type: ignore[func-returns-value, redundant-expr]
        ask(ID, "f", STATUS, timeout_s=20)

        assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} <= masks[0]

    def test_keeps_different_features_and_projects_apart(self, server):
        with ExitStack() as stack:
            for project, feature in ((ID, "g"), ("0" * 32, "f")):
                run = Run()
                run.status = lambda name=feature: {"phase": name}  # type: ignore[method-assign, misc]
                stack.callback(Server.open(project, feature, handler=run).close)

            phases = [ask(*name, STATUS, timeout_s=20)["phase"] for name in ((ID, "f"), (ID, "g"), ("0" * 32, "f"))]  # type: ignore[index]
        assert ["research", "g", "f"] == phases


class TestWhoAsksAmiss:
    @pytest.mark.parametrize(
        "request_",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b'"status"',
            b"{}",
            b'{"do": "dance"}',
            b'{"do": ["status"]}',
            b'{"do": "cancel"}',
            b'{"do": "cancel", "save": 1}',
            b"[" * 4000,
            b"\xff\xfe",
            b"\x00",
        ],
    )
    def test_is_told_so(self, server, handler, runtime, request_):
        assert {"error": "that is not a request"} == json.loads(speak(runtime / NAME, request_ + b"\n"))
        assert [] == handler.cancelled

    @given(data=st.binary(max_size=300))
    def test_does_no_harm_with_any_bytes(self, data):
        run = Run()
        server = Server.open(ID, "h", handler=run)
        folder = Path(os.environ["XDG_RUNTIME_DIR"], "sage-sandbox")
        try:
            speak(folder / address(ID, "h"), data.replace(b"\n", b"") + b"\n")

            assert ([], "research") == (run.cancelled, ask(ID, "h", STATUS, timeout_s=20)["phase"])  # type: ignore[index]
        finally:
            server.close()

    @pytest.mark.parametrize("ends", [b"", b"\n"])
    def test_too_long_is_told_so(self, server, runtime, ends):
        answer = speak(runtime / NAME, b'{"do": "status", "x": "' + b"x" * REQUEST_MAX + b'"}' + ends)

        assert {"error": "a request has 4096 bytes at most"} == json.loads(answer)

    def test_may_ask_in_pieces(self, server, runtime):
        with connected(runtime / NAME) as sock:
            sock.sendall(b'{"do": "sta')
            ask(ID, "f", STATUS, timeout_s=20)  # the first piece has been read by now
            sock.sendall(b'tus"}\n')

            assert "research" == json.loads(said(sock))["phase"]

    def test_is_dropped_when_silent(self, handler, runtime):
        server = Server.open(ID, "f", handler=handler, silence_s=0.05)
        with connected(runtime / NAME) as silent:
            assert b"" == said(silent)
        server.close()

    def test_who_waits_may_be_silent(self, handler, runtime, elsewhere):
        server = Server.open(ID, "f", handler=handler, silence_s=0.05)
        waiting = elsewhere.submit(ask, ID, "f", WAIT, timeout_s=20)
        now_waiting(server, 1)
        with connected(runtime / NAME) as silent:
            said(silent)
        server.finish(LAST)

        assert LAST == waiting.result()

    @pytest.mark.parametrize("more", [b"x", None])
    def test_who_waits_is_dropped_when_gone_or_talking_on(self, server, runtime, more):
        with connected(runtime / NAME) as sock:
            sock.sendall(b'{"do": "wait"}\n')
            now_waiting(server, 1)
            if more is None:
                sock.shutdown(socket.SHUT_WR)
            else:
                sock.sendall(more)

            assert b"" == said(sock)
        assert ask(ID, "f", STATUS, timeout_s=20)

    def test_whoever_leaves_before_the_answer_is_no_matter(self, server, runtime):
        for data in (b"", b'{"do": "status"}\n', b'{"do": "wait"}\n'):
            with connected(runtime / NAME) as sock:
                sock.sendall(data)

        assert ask(ID, "f", STATUS, timeout_s=20)

    def test_whose_connection_breaks_is_dropped(self, server, runtime, monkeypatch):
        def broken(*_):
            raise ConnectionResetError(errno.ECONNRESET, "reset")

        with connected(runtime / NAME) as sock:
            monkeypatch.setattr(socket.socket, "recv", broken)
            sock.sendall(b'{"do": "wait"}\n')
            sock.setblocking(True)

            with pytest.raises(ConnectionResetError):  # it was left with something unread
                os.read(sock.fileno(), 1)


class TestManyAtOnce:
    def test_those_without_a_request_queue_and_are_let_in_in_turn(self, server, runtime, elsewhere):
        there = []
        let_in = server._let_in
        server._let_in = lambda: (let_in(), there.append(len(server._asking())))[0]  # type: ignore[func-returns-value]
        with ExitStack() as stack:
            patient = stack.enter_context(connected(runtime / NAME))
            patient.sendall(b'{"do": "wait"}\n')
            now_waiting(server, 1)
            silent = [stack.enter_context(connected(runtime / NAME)) for _ in range(VISITORS_MAX)]
            while len(server._visitors) <= VISITORS_MAX:
                os.sched_yield()
            patient.close()
            while len(server._visitors) > VISITORS_MAX:
                os.sched_yield()
            asked = elsewhere.submit(ask, ID, "f", STATUS, timeout_s=20)
            silent[0].close()

            assert "research" == asked.result()["phase"]
        assert VISITORS_MAX == max(there)

    def test_those_who_wait_take_no_place(self, server, runtime):
        with ExitStack() as stack:
            for _ in range(VISITORS_MAX * 2):
                stack.enter_context(connected(runtime / NAME)).sendall(b'{"do": "wait"}\n')
            now_waiting(server, VISITORS_MAX * 2)

            assert ask(ID, "f", STATUS, timeout_s=20)

    def test_so_many_may_wait_and_no_more(self, server, monkeypatch, elsewhere):
        monkeypatch.setattr(serving, "WAITERS_MAX", 2)
        waiting = [elsewhere.submit(ask, ID, "f", WAIT, timeout_s=20) for _ in range(2)]
        now_waiting(server, 2)

        assert {"error": "2 processes are waiting already"} == ask(ID, "f", WAIT, timeout_s=20)
        server.finish(LAST)
        assert [LAST, LAST] == [asked.result() for asked in waiting]

    def test_hundreds_of_questions_are_answered(self, server, elsewhere):
        asked = [elsewhere.submit(ask, ID, "f", STATUS, timeout_s=20) for _ in range(400)]

        assert {"research"} == {answer.result()["phase"] for answer in asked}

    def test_without_a_free_descriptor_they_wait_and_it_does_not_spin(self, server, monkeypatch):
        refused = []

        class Full:
            def __init__(self, listener):
                self.listener = listener

            def accept(self):
                refused.append(time.monotonic())
                if len(refused) == 1:
                    raise OSError(errno.EMFILE, "too many")
                return self.listener.accept()

            def fileno(self):
                return self.listener.fileno()

            def close(self):
                self.listener.close()

        server._door.listener = Full(server._door.listener)

        assert ask(ID, "f", STATUS, timeout_s=20)
        assert RETRY_S <= refused[1] - refused[0]

    def test_a_bell_that_rang_for_nobody_is_no_matter(self, server, monkeypatch):
        assert not server._let_in()


class TestTheSocket:
    def test_of_a_killed_process_is_replaced(self, tmp_path, handler):
        with process(tmp_path) as run:
            assert {"phase": "p"} == ask(ID, "f", STATUS, timeout_s=20)
            run.kill()
            run.wait(20)

            assert ask(ID, "f", STATUS, timeout_s=20) is None
            server = Server.open(ID, "f", handler=handler)
            assert "research" == ask(ID, "f", STATUS, timeout_s=20)["phase"]  # type: ignore[index]
            server.close()

    def test_replaces_whatever_has_its_name(self, runtime, handler):
        runtime.mkdir(mode=0o700)
        (runtime / NAME).write_text("x")
        server = Server.open(ID, "f", handler=handler)

        assert ask(ID, "f", STATUS, timeout_s=20)
        server.close()

    def test_that_cannot_be_made_leaves_nothing_open(self, runtime, handler):
        (runtime / NAME).mkdir(parents=True)
        runtime.chmod(0o700)
        before = open_descriptors()

        with pytest.raises(OSError, match=r"directory|permitted"):
            Server.open(ID, "f", handler=handler)
        assert before == open_descriptors()

    @pytest.mark.parametrize("call", ["bind", "listen"])
    def test_that_the_kernel_refuses_leaves_nothing_open(self, handler, monkeypatch, call):
        class Refusing(socket.socket):
            pass

        def refuse(*_):
            raise OSError(errno.ENOBUFS, "no buffers")

        setattr(Refusing, call, refuse)
        monkeypatch.setattr(sockets.socket, "socket", Refusing)  # type: ignore[attr-defined]
        before = open_descriptors()

        with pytest.raises(OSError, match="no buffers"):
            Server.open(ID, "f", handler=handler)
        assert before == open_descriptors()

    def test_that_is_taken_away_at_once_leaves_nothing_open(self, handler, monkeypatch):
        bound = []

        def bind_and_lose(folder, name):
            bound.append(sockets.bind(folder, name))
            folder.remove(name)
            return bound[0]

        monkeypatch.setattr(door, "bind", bind_and_lose)

        with pytest.raises(FileNotFoundError):
            Server.open(ID, "f", handler=handler)
        assert -1 == bound[0].fileno()

    def test_without_a_thread_is_none(self, handler, runtime, monkeypatch):
        def refuse(_):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        before = open_descriptors()

        with pytest.raises(SageError, match="no thread can be started"):
            Server.open(ID, "f", handler=handler)
        assert ([], before) == (list(runtime.iterdir()), open_descriptors())

    def test_closes_all_it_opened(self, handler):
        before = open_descriptors()
        server = Server.open(ID, "f", handler=handler)
        ask(ID, "f", STATUS, timeout_s=20)
        server.finish(LAST)

        assert before == open_descriptors()

    def test_works_in_a_process_nobody_may_look_into(self, tmp_path):
        code = RUN.replace(
            "server = ", "from sage_sandbox.sandbox.inside.syscalls import set_dumpable\nset_dumpable(False)\nserver = "
        )
        argv = [sys.executable, "-P", "-c", code, PACKAGE_FOLDER, str(tmp_path / "nowhere"), ID]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
            assert "ready\n" == run.stdout.readline()  # type: ignore[union-attr]
            assert {"phase": "p"} == ask(ID, "f", STATUS, timeout_s=20)
            run.communicate("\n", timeout=20)

    @pytest.mark.parametrize("how", ["socket", "folder", "swap"])
    def test_that_is_taken_away_is_made_anew(self, handler, runtime, how, monkeypatch):
        server = Server.open(ID, "f", handler=handler, mend_s=0.01)
        made = threading.Event()
        bind = Door._bind
        monkeypatch.setattr(Door, "_bind", lambda *args: (bind(*args), made.set())[0])  # type: ignore[func-returns-value]
        if how == "swap":
            (runtime / "other").write_text("")
            (runtime / "other").replace(runtime / NAME)
        else:
            (runtime / NAME).unlink()
        if how == "folder":
            with suppress(FileNotFoundError):
                runtime.rmdir()

        assert made.wait(20)
        assert ask(ID, "f", STATUS, timeout_s=20)
        server.close()

    def test_that_is_still_there_is_left_alone(self, handler, runtime, monkeypatch):
        looked = threading.Semaphore(0)
        is_lost = Door.is_lost
        monkeypatch.setattr(Door, "is_lost", lambda door: (is_lost(door), looked.release())[0])  # type: ignore[func-returns-value]
        server = Server.open(ID, "f", handler=handler, mend_s=0.01)
        before = os.lstat(runtime / NAME).st_ino

        assert all(looked.acquire(timeout=20) for _ in range(3))
        assert before == os.lstat(runtime / NAME).st_ino
        server.close()

    def test_that_cannot_be_made_anew_is_tried_again(self, handler, runtime, monkeypatch):
        server = Server.open(ID, "f", handler=handler, mend_s=0.01)
        tries, made = [], threading.Event()
        real = door.open_runtime  # type: ignore[attr-defined]

        def open_runtime(environ):
            tries.append(environ)
            if len(tries) < 3:
                raise SageError("no folder")
            made.set()
            return real(environ)

        monkeypatch.setattr(door, "open_runtime", open_runtime)
        (runtime / NAME).unlink()

        assert made.wait(20)
        server.finish(LAST)
        assert 3 == len(tries)

    def test_that_was_never_made_anew_is_closed_all_the_same(self, handler, runtime, monkeypatch):
        server = Server.open(ID, "f", handler=handler, mend_s=0.01)
        tried = threading.Event()

        def open_runtime(environ):
            tried.set()
            raise SageError("no folder")

        monkeypatch.setattr(door, "open_runtime", open_runtime)
        (runtime / NAME).unlink()

        assert tried.wait(20)
        server.close()


class TestWhomToTrust:
    def test_nobody_there_is_no_answer(self, runtime):
        assert ask(ID, "f", STATUS, timeout_s=20) is None
        runtime.mkdir(mode=0o700)
        assert ask(ID, "f", STATUS, timeout_s=20) is None

    def test_every_folder_is_tried(self, handler, tmp_path, monkeypatch):
        server = Server.open(ID, "f", handler=handler, environ={})

        assert not (tmp_path / "sage-sandbox").exists()
        assert "research" == ask(ID, "f", STATUS, timeout_s=20)["phase"]  # type: ignore[index]
        server.close()

    @pytest.mark.parametrize("mode", [0o710, 0o701, 0o777])
    def test_a_folder_that_others_may_enter_is_passed_over(self, server, runtime, mode):
        runtime.chmod(mode)

        assert ask(ID, "f", STATUS, timeout_s=20) is None

    def test_a_link_in_place_of_the_folder_is_passed_over(self, server, runtime):
        runtime.rename(runtime.with_name("moved"))
        runtime.symlink_to("moved")

        assert ask(ID, "f", STATUS, timeout_s=20) is None

    def test_a_link_in_place_of_the_socket_is_passed_over(self, server, runtime):
        (runtime / NAME).rename(runtime / "moved")
        (runtime / NAME).symlink_to("moved")

        assert ask(ID, "f", STATUS, timeout_s=20) is None

    def test_what_is_no_socket_is_passed_over(self, runtime):
        runtime.mkdir(mode=0o700)
        (runtime / NAME).write_text("x")

        assert ask(ID, "f", STATUS, timeout_s=20) is None

    def test_a_socket_nobody_listens_on_is_passed_over(self, runtime):
        runtime.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(runtime / NAME))

            assert ask(ID, "f", STATUS, timeout_s=20) is None

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a folder away")
    def test_a_folder_of_another_user_is_refused_by_both_sides(self, server, handler, runtime, tmp_path):
        os.chown(runtime, 10001, 10001)

        assert ask(ID, "f", STATUS, timeout_s=20) is None
        (tmp_path / "temporary").rmdir()
        with pytest.raises(SageError, match="no folder of this user's own"):
            Server.open(ID, "f", handler=handler)
        os.chown(runtime, 0, 0)

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a socket away")
    def test_a_socket_of_another_user_is_passed_over(self, server, runtime):
        os.chown(runtime / NAME, 10001, 10001)

        assert ask(ID, "f", STATUS, timeout_s=20) is None

    def test_another_user_who_listens_is_told_nothing(self, runtime, monkeypatch):
        runtime.mkdir(mode=0o700)
        monkeypatch.setattr(sockets, "peer_of", lambda _: sockets.Peer(1, os.geteuid() + 1))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(runtime / NAME))
            listener.listen()

            assert ask(ID, "f", STATUS, timeout_s=20) is None
            with listener.accept()[0] as sock:
                assert b"" == sock.recv(100)

    def test_another_user_who_asks_is_told_nothing(self, server, runtime, monkeypatch):
        peer_of = sockets.peer_of
        monkeypatch.setattr(serving, "peer_of", lambda sock: peer_of(sock)._replace(uid=os.geteuid() + 1))

        assert b"" == speak(runtime / NAME, b'{"do": "status"}\n')

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
    def test_another_user_who_could_reach_the_socket_is_told_nothing(self, server, runtime, tmp_path):
        for path in (runtime, tmp_path, *tmp_path.parents):
            if not path.stat().st_mode & 0o001:
                path.chmod(0o755)
        (runtime / NAME).chmod(0o666)
        told = told_to_a_stranger(runtime / NAME)

        assert told in {b"connected ", b"connected nothing"}


class TestNoAnswer:
    def test_of_a_stopped_process_is_said_in_time(self, tmp_path):
        with process(tmp_path) as run:
            os.kill(run.pid, signal.SIGSTOP)
            os.waitpid(run.pid, os.WUNTRACED)

            with pytest.raises(NotAnswering, match="the process that runs f does not answer") as silent:
                ask(ID, "f", STATUS, timeout_s=0.2)
            assert silent.value.hint.endswith(f"kill -CONT {run.pid}")

            os.kill(run.pid, signal.SIGCONT)
            assert {"phase": "p"} == ask(ID, "f", STATUS, timeout_s=20)

    def test_where_no_more_can_queue(self, runtime):
        runtime.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
            listener.bind(str(runtime / NAME))
            listener.listen(0)
            with suppress(BlockingIOError):
                while True:
                    waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                    waiting.setblocking(False)
                    waiting.connect(str(runtime / NAME))

            with pytest.raises(NotAnswering) as silent:
                ask(ID, "f", STATUS, timeout_s=0.1)
            assert "it may be stopped" == silent.value.hint

    @pytest.mark.parametrize("answer", [b"", b'{"phase"'])
    def test_of_a_process_that_ends_meanwhile(self, runtime, elsewhere, answer):
        assert [None] == answered_with(runtime, elsewhere, answer, [STATUS])

    def test_of_a_process_that_resets_the_connection(self, runtime, elsewhere):
        runtime.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(runtime / NAME))
            listener.listen()
            asked = elsewhere.submit(ask, ID, "f", STATUS, timeout_s=20)
            sock, _ = listener.accept()
            sock.recv(1)
            sock.close()  # with something unread: a reset

            assert asked.result() is None

    def test_once_the_time_is_over_although_it_says_something(self, runtime, elsewhere, monkeypatch):
        times = iter([0.0, 0.0, 1.0, 3.0])
        monkeypatch.setattr(asking.time, "monotonic", lambda: next(times))  # type: ignore[attr-defined]
        with pytest.raises(NotAnswering):
            answered_with(runtime, elsewhere, b'{"phase"', [STATUS], timeout_s=2, close=False)

    @pytest.mark.parametrize("answer", [b"\n", b"[]\n", b"{\n", b"[" * 9000 + b"\n", b"x" * (ANSWER_MAX + 9)])
    def test_an_answer_that_is_none_is_an_error(self, runtime, elsewhere, answer):
        with pytest.raises(SageError, match="gave an answer that is none"):
            answered_with(runtime, elsewhere, answer, [STATUS])

    def test_the_longest_answer_is_taken(self, server, handler):
        handler.status = lambda: {"x": "x" * (ANSWER_MAX - 9)}

        assert ANSWER_MAX - 9 == len(ask(ID, "f", STATUS, timeout_s=20)["x"])  # type: ignore[index]


def answered_with(runtime, elsewhere, answer, requests, *, timeout_s=20, close=True):
    """What is made of an answer that a process gives to each request."""
    runtime.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(str(runtime / NAME))
        listener.listen()

        def reply():
            sock, _ = listener.accept()
            stack.enter_context(sock)
            sock.recv(REQUEST_MAX)
            with suppress(OSError):
                sock.sendall(answer)
            if close:
                sock.close()

        answers = []
        for request in requests:
            replied = elsewhere.submit(reply)
            answers.append(ask(ID, "f", request, timeout_s=timeout_s))
            replied.result()
        return answers


class TestCancel:
    @pytest.fixture
    def project(self, tmp_path):
        (tmp_path / "project").mkdir()
        return tmp_path / "project"

    @pytest.fixture
    def run(self, project, handler):
        place = project_place(project)
        place.folder.close()
        server = Server.open(place.id, "f", handler=handler)
        yield server
        server.close()

    @pytest.mark.parametrize("save", [True, False])
    def test_waits_for_the_end_and_says_how_it_was(self, run, project, handler, elsewhere, save):
        asked = elsewhere.submit(cancel, project, "f", save=save)
        assert handler.told.wait(20)
        run.finish({**LAST, "checkpointSaved": save})

        assert Cancelled("f", "cancelled", LAST["cancelledAt"], save) == asked.result()  # type: ignore[arg-type]
        assert [save] == handler.cancelled

    def test_finds_the_project_by_its_real_path(self, run, project, handler, elsewhere):
        project.with_name("link").symlink_to(project)
        asked = elsewhere.submit(cancel, project.with_name("link"), "f")
        assert handler.told.wait(20)
        run.finish(LAST)

        assert "cancelled" == asked.result().status

    def test_of_a_project_nobody_ever_ran_anything_in_makes_nothing(self, project, own_home):
        with pytest.raises(NotRunning, match="f is not running"):
            cancel(project, "f")
        assert [] == list(own_home.iterdir())

    def test_of_a_feature_that_does_not_run_says_so(self, run, project):
        with pytest.raises(NotRunning, match="g is not running"):
            cancel(project, "g")

    def test_of_a_run_that_breaks_says_so(self, run, project, handler, elsewhere):
        asked = elsewhere.submit(cancel, project, "f")
        assert handler.told.wait(20)
        run.close()

        with pytest.raises(NotCancelled, match="f was not cancelled: the run ended without a result"):
            asked.result()

    @pytest.mark.parametrize("field", LAST)
    def test_holds_the_answer_to_its_shape(self, run, project, handler, elsewhere, field):
        asked = elsewhere.submit(cancel, project, "f")
        assert handler.told.wait(20)
        run.finish({**LAST, field: 1})

        with pytest.raises(NotCancelled, match="f was not cancelled"):
            asked.result()

    def test_is_bounded(self, run, project, handler):
        with pytest.raises(NotAnswering):
            cancel(project, "f", timeout_s=0.1)
        assert [True] == handler.cancelled
