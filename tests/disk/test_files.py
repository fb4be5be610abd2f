"""Nothing of somebody else's is opened, and a file is replaced whole or not at all."""

from __future__ import annotations

import errno
import os
import pickle
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.disk.files import Folder, Untrusted, sage_folder, unwritable
from sage_sandbox.errors import ExitCode, StateCorrupted, StateUnwritable

MOST = 64 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def mode_of(path):
    return path.stat().st_mode & 0o7777


def fail(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


def make_fifo(path):
    os.mkfifo(path, 0o600)


def make_link(path):
    path.with_name("target").write_text("x")
    path.symlink_to("target")


def make_loop(path):
    path.symlink_to(path.name)


def make_hard_link(path):
    path.with_name("target").write_text("x")
    path.hardlink_to(path.with_name("target"))


def make_sparse(path):
    path.touch()
    os.truncate(path, 3 << 30)


def make_shared(mode):
    def make(path):
        path.touch()
        path.chmod(mode)

    return make


def make_foreign(path):
    path.touch()
    os.chown(path, 12345, 12345)


HOSTILE = [
    pytest.param("is not a regular file", make_fifo, id="fifo"),
    pytest.param("is not a regular file", Path.mkdir, id="folder"),
    pytest.param("is a symbolic link", make_link, id="link"),
    pytest.param("has more than one name", make_hard_link, id="hard link"),
    pytest.param("is larger than 64 MiB", make_sparse, id="sparse"),
    pytest.param("others may write to it", make_shared(0o620), id="group may write"),
    pytest.param("others may write to it", make_shared(0o602), id="all may write"),
    pytest.param("belongs to another user", make_foreign, id="foreign", marks=needs_root),
]


class TestReading:
    def test_what_was_written_is_read(self, folder):
        folder.write_new("file", b"content")

        assert folder.read("file", 7) == b"content"

    def test_an_empty_file_is_read(self, folder):
        folder.write_new("file", b"")

        assert folder.read("file", 0) == b""

    def test_a_missing_file_is_missing(self, folder):
        with pytest.raises(FileNotFoundError):
            folder.read("file", 1)

    @pytest.mark.parametrize(("reason", "make"), HOSTILE)
    def test_a_hostile_file_is_refused_that_a_plain_open_takes(self, folder, reason, make):
        path = Path(folder.path, "file")
        make(path)
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # without NONBLOCK a FIFO would hang here

        with pytest.raises(Untrusted) as caught:
            folder.read("file", MOST)

        assert caught.value.reason == reason
        assert caught.value.path == str(path)
        assert caught.value.message.startswith(str(path))
        assert caught.value.message.endswith(reason)

    @pytest.mark.parametrize("make", [make_loop, lambda path: path.symlink_to("nowhere")], ids=["loop", "dangling"])
    def test_a_link_that_leads_nowhere_is_a_link(self, folder, make):
        path = Path(folder.path, "file")
        make(path)
        with pytest.raises(OSError, match=r"No such file|levels of symbolic links"):
            os.open(path, os.O_RDONLY)

        with pytest.raises(Untrusted, match="is a symbolic link"):
            folder.read("file", MOST)

    def test_nothing_is_made_where_a_dangling_link_leads(self, folder):
        path = Path(folder.path, "file")
        path.symlink_to("elsewhere")
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
        elsewhere = path.with_name("elsewhere")
        assert elsewhere.exists()
        elsewhere.unlink()

        with pytest.raises(Untrusted, match="is a symbolic link"):
            folder.open_file("file", os.O_WRONLY | os.O_CREAT)

        assert not elsewhere.exists()

    @pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT])
    def test_a_socket_is_not_a_regular_file(self, folder, flags, monkeypatch):
        path = Path(folder.path, "file")
        monkeypatch.chdir(folder.path)  # a socket's address is short
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("file")
            with pytest.raises(OSError, match="No such device") as plain:
                os.open(path, flags)

            with pytest.raises(Untrusted, match="is not a regular file"):
                folder.open_file("file", flags)

        assert plain.value.errno == errno.ENXIO

    def test_a_folder_is_not_opened_for_writing(self, folder):
        Path(folder.path, "file").mkdir()

        with pytest.raises(Untrusted, match="is not a regular file"):
            folder.open_file("file", os.O_RDWR)

    def test_a_device_is_not_a_regular_file(self):
        with Folder.given("/dev") as devices, pytest.raises(Untrusted, match="is not a regular file"):
            devices.read("null", 1)

    def test_a_file_of_another_user_is_refused(self, folder, monkeypatch):
        folder.write_new("file", b"x")
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

        with pytest.raises(Untrusted, match="belongs to another user"):
            folder.read("file", 1)

    def test_where_others_may_write_the_cure_is_said(self, folder):
        path = Path(folder.path, "file")
        make_shared(0o666)(path)

        with pytest.raises(Untrusted) as caught:
            folder.read("file", 1)

        assert caught.value.message == f"{path}: others may write to it"
        assert caught.value.hint == f"chmod go-w {path}"

    def test_other_errors_stay_what_they_are(self, folder, monkeypatch):
        folder.write_new("file", b"x")
        monkeypatch.setattr(os, "open", fail(errno.EMFILE))

        with pytest.raises(OSError, match="Too many open files"):
            folder.read("file", 1)

    @pytest.mark.parametrize(
        ("most", "spelled"),
        [(10, "10 bytes"), (1000, "1000 bytes"), (4 << 10, "4 KiB"), (64 << 20, "64 MiB"), (1 << 30, "1 GiB")],
    )
    def test_a_file_that_is_too_large_is_not_read(self, folder, most, spelled, monkeypatch):
        os.truncate(os.open(Path(folder.path, "file"), os.O_CREAT | os.O_WRONLY, 0o600), most + 1)
        monkeypatch.setattr(os, "read", fail(errno.EIO))

        with pytest.raises(Untrusted, match=f"is larger than {spelled}"):
            folder.read("file", most)

    def test_a_file_that_grows_while_it_is_read_is_cut_short(self, folder, monkeypatch):
        folder.write_new("file", b"x" * 10)
        path, read, asked = Path(folder.path, "file"), os.read, []

        def grow(fd, size):
            asked.append(size)
            with path.open("ab") as file:
                file.write(b"x" * 100_000)
            return read(fd, size)

        monkeypatch.setattr(os, "read", grow)
        with pytest.raises(Untrusted, match="is larger than 5000 bytes"):
            folder.read("file", 5000)

        assert sum(asked) <= 10_000

    def test_a_file_that_arrives_in_pieces_is_read_whole(self, folder, monkeypatch):
        folder.write_new("file", bytes(range(100)))
        read = os.read
        monkeypatch.setattr(os, "read", lambda fd, size: read(fd, min(size, 7)))

        assert folder.read("file", 100) == bytes(range(100))

    def test_a_file_that_was_replaced_since_it_was_opened_is_whole(self, folder, monkeypatch):
        folder.write_new("file", b"before")
        opened = os.open

        def replace(*arguments, **options):
            fd = opened(*arguments, **options)
            monkeypatch.undo()
            folder.write_new("file", b"after")
            return fd

        monkeypatch.setattr(os, "open", replace)

        assert folder.read("file", 10) == b"before"
        assert folder.read("file", 10) == b"after"


class TestKeepingAFileOpen:
    def test_it_is_made_for_the_user_alone(self, folder):
        os.close(folder.open_file("file", os.O_RDWR | os.O_CREAT))

        assert mode_of(Path(folder.path, "file")) == 0o600

    def test_it_is_not_made_unasked(self, folder):
        with pytest.raises(FileNotFoundError):
            folder.open_file("file", os.O_RDWR)

    def test_no_other_program_inherits_it(self, folder):
        fd = folder.open_file("file", os.O_RDWR | os.O_CREAT)

        assert not os.get_inheritable(fd)
        assert not os.get_inheritable(folder.fd)
        os.close(fd)

    def test_truncating_is_refused_because_it_comes_before_the_checks(self, folder):
        with pytest.raises(ValueError, match="O_TRUNC"):
            folder.open_file("file", os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    @pytest.mark.parametrize("umask", [0, 0o077, 0o777])
    def test_a_umask_changes_nothing(self, folder, set_umask, umask):
        set_umask(umask)

        os.close(folder.open_file("kept", os.O_RDWR | os.O_CREAT))
        folder.write_new("file", b"x")
        folder.below("a", "b", make=True).close()
        Folder.open(Path(folder.path, "c/d"), make=True).close()

        root = Path(folder.path)
        assert {mode_of(root / name) for name in ("kept", "file")} == {0o600}
        assert {mode_of(root / name) for name in ("a", "a/b", "c", "c/d")} == {0o700}
        assert folder.read("file", 1) == b"x"


class TestWriting:
    def test_it_replaces_what_was_there(self, folder):
        folder.write_new("file", b"before")
        folder.write_new("file", b"after")

        assert folder.read("file", 10) == b"after"
        assert folder.names() == ["file"]
        assert mode_of(Path(folder.path, "file")) == 0o600

    def test_who_reads_the_old_file_reads_it_to_its_end(self, folder):
        folder.write_new("file", b"before")
        with Path(folder.path, "file").open("rb") as file:
            folder.write_new("file", b"after")

            assert file.read() == b"before"

    def test_a_link_in_its_place_is_replaced_and_not_followed(self, folder, tmp_path):
        (tmp_path / "target").write_text("x")
        Path(folder.path, "file").symlink_to(tmp_path / "target")

        folder.write_new("file", b"new")

        assert folder.read("file", 3) == b"new"
        assert (tmp_path / "target").read_text() == "x"

    def test_the_bytes_are_durable_before_the_name_is(self, folder, monkeypatch):
        calls = []
        for call in ("write", "fsync", "close", "rename"):
            real = getattr(os, call)
            monkeypatch.setattr(os, call, lambda *a, real=real, call=call, **k: calls.append(call) or real(*a, **k))  # type: ignore[func-returns-value, redundant-expr]

        folder.write_new("file", b"x")

        assert calls == ["write", "fsync", "close", "rename"]

    def test_a_short_write_is_continued(self, folder, monkeypatch):
        write = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))

        folder.write_new("file", bytes(range(100)))

        assert folder.read("file", 100) == bytes(range(100))

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
    @pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
    def test_a_failed_write_leaves_what_was_there_and_nothing_else(self, folder, monkeypatch, call, number):
        folder.write_new("file", b"before")
        with monkeypatch.context() as faulty:
            faulty.setattr(os, call, fail(number))
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                folder.write_new("file", b"after")

        assert caught.value.errno == number
        assert folder.names() == ["file"]
        assert folder.read("file", 10) == b"before"

    def test_the_first_error_is_the_one_that_is_said(self, folder, monkeypatch):
        with monkeypatch.context() as faulty:
            faulty.setattr(os, "fsync", fail(errno.ENOSPC))
            faulty.setattr(os, "unlink", fail(errno.EIO))
            with pytest.raises(OSError, match="No space left"):
                folder.write_new("file", b"x")

        assert 1 == folder.sweep()

    def test_a_failed_fsync_is_not_tried_again(self, folder, monkeypatch):
        calls = []
        with monkeypatch.context() as faulty:
            faulty.setattr(os, "fsync", lambda fd: calls.append(fd) or fail(errno.EIO)())  # type: ignore[func-returns-value, redundant-expr]
            with pytest.raises(OSError, match="Input/output"):
                folder.write_new("file", b"x")

        assert 1 == len(calls)

    def test_an_interruption_leaves_no_temporary_file(self, folder, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as faulty:
            faulty.setattr(os, "fsync", interrupt)
            with pytest.raises(KeyboardInterrupt):
                folder.write_new("file", b"x")

        assert folder.names() == []

    def test_the_temporary_file_of_somebody_else_is_left_alone(self, folder, monkeypatch):
        Path(folder.path, "file.00000000.tmp").write_text("theirs")
        monkeypatch.setattr(os, "urandom", bytes)

        with pytest.raises(FileExistsError):
            folder.write_new("file", b"ours")
        assert Path(folder.path, "file.00000000.tmp").read_text() == "theirs"


class TestSweeping:
    def test_only_what_a_writer_left_is_removed(self, folder):
        root = Path(folder.path)
        kept = ("file", "file.tmp", "file.0badf00d", ".0badf00d.tmp", "file.0BADF00D.tmp", "file.0badf00d.tmp2")
        for name in (*kept, "file.0badf00d.tmp", "other.json.12345678.tmp", "new\nline.12345678.tmp"):
            (root / name).touch()
        (root / "folder.0badf00d.tmp").mkdir()
        (root / "link.0badf00d.tmp").symlink_to("file")

        assert 3 == folder.sweep()
        assert {*kept, "folder.0badf00d.tmp", "link.0badf00d.tmp"} == set(folder.names())

    def test_what_others_are_writing_is_left_to_them(self, folder):
        for name in ("a.json.0badf00d.tmp", "a.json.bak.0badf00d.tmp", "b.json.0badf00d.tmp"):
            Path(folder.path, name).touch()

        assert 2 == folder.sweep("a.json.")
        assert ["b.json.0badf00d.tmp"] == folder.names()


class TestFolders:
    def test_what_is_missing_is_made_for_the_user_alone(self, folder):
        with folder.below("a", "b", make=True) as below:
            assert below.path == f"{folder.path}/a/b"

        assert [0o700] * 2 == [mode_of(Path(folder.path, name)) for name in ("a", "a/b")]

    def test_what_is_there_is_opened(self, folder):
        with folder.below("a", make=True) as first, folder.below("a", make=True) as second, folder.below("a") as third:
            first.write_new("file", b"x")

            assert second.names() == third.names() == ["file"]

    def test_no_names_lead_to_the_folder_itself(self, folder):
        with folder.below() as same:
            assert os.path.samestat(os.fstat(folder.fd), os.fstat(same.fd))
            assert same.fd != folder.fd
            assert not os.get_inheritable(same.fd)

    def test_nothing_is_made_unasked(self, folder):
        with pytest.raises(FileNotFoundError):
            folder.below("a")
        with pytest.raises(FileNotFoundError):
            Folder.open(Path(folder.path, "a"))
        with pytest.raises(FileNotFoundError):
            sage_folder(Path(folder.path), "state")

        assert folder.names() == []

    @pytest.mark.parametrize("make", [True, False])
    @pytest.mark.parametrize("names", [("link",), ("link", "inner"), ("real", "up"), ("nowhere",)])
    def test_a_link_on_the_way_is_refused_that_a_plain_open_follows(self, folder, tmp_path, names, make):
        root = Path(folder.path)
        (tmp_path / "outside/inner").mkdir(parents=True)
        (root / "real").mkdir()
        (root / "link").symlink_to(tmp_path / "outside")
        (root / "real/up").symlink_to("..")
        (root / "nowhere").symlink_to("missing")
        assert "nowhere" in names or root.joinpath(*names).is_dir()

        with pytest.raises(Untrusted, match="is a symbolic link"):
            folder.below(*names, make=make)

        assert not (root / "missing").exists()

    @pytest.mark.parametrize("make", [True, False])
    def test_a_file_on_the_way_is_refused(self, folder, make):
        folder.write_new("a", b"")

        with pytest.raises(Untrusted, match="is not a folder") as caught:
            folder.below("a", "b", make=make)

        assert caught.value.path == f"{folder.path}/a"

    @needs_root
    def test_a_folder_that_was_given_away_is_refused(self, folder):
        folder.below("a", "b", make=True).close()
        os.chown(Path(folder.path, "a"), 12345, 12345)

        with pytest.raises(Untrusted, match="/a belongs to another user"):
            folder.below("a", "b")

    def test_a_folder_of_another_user_is_refused(self, folder, monkeypatch):
        folder.below("a", make=True).close()
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

        with pytest.raises(Untrusted, match="/a belongs to another user"):
            folder.below("a")
        with pytest.raises(Untrusted, match="own belongs to another user"):
            Folder.open(folder.path)

    @pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "../a", "/etc"])
    def test_what_is_no_single_name_is_refused(self, folder, name):
        acts = (
            lambda: folder.below("a", name, make=True),
            lambda: folder.read(name, 1),
            lambda: folder.open_file(name, os.O_RDONLY),
            lambda: folder.write_new(name, b""),
            lambda: folder.remove(name),
            lambda: folder.rename(name, folder, "a"),
            lambda: folder.rename("a", folder, name),
        )
        for act in acts:
            with pytest.raises(ValueError, match="is not a single name"):
                act()

    def test_the_one_above_is_durable_with_the_new_name(self, folder, synced):
        folder.below("a", "b", make=True).close()
        folder.below("a", "b", make=True).close()
        Folder.open(f"{folder.path}/c/d", make=True).close()

        assert [folder.path, f"{folder.path}/a", folder.path, f"{folder.path}/c"] == synced

    def test_one_that_another_process_made_meanwhile_is_taken(self, folder, monkeypatch):
        def come_second(name, mode, **where):
            mkdir(name, mode, **where)
            raise FileExistsError

        mkdir = os.mkdir
        monkeypatch.setattr(os, "mkdir", come_second)

        folder.below("a", make=True).close()

        assert ["a"] == folder.names()

    def test_closing_twice_closes_once(self, folder):
        below = folder.below()
        below.close()
        reused = os.dup(folder.fd)
        below.close()

        os.fstat(reused)
        os.close(reused)

    def test_no_descriptor_is_left_open(self, folder):
        before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths
        folder.below("a", "b", make=True).close()
        folder.write_new("file", b"x")
        folder.read("file", 1)
        Path(folder.path, "link").symlink_to("a")
        make_shared(0o666)(Path(folder.path, "shared"))
        Path(folder.path, "a").chmod(0o770)
        for act in (
            lambda: folder.below("a", "c"),
            lambda: folder.below("link", "b"),
            lambda: folder.read("shared", 1),
            lambda: Folder.open(f"{folder.path}/a"),
        ):
            with pytest.raises((OSError, Untrusted)):
                act()

        assert before == sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths


class TestTheUsersOwn:
    def test_links_above_are_the_users_choice(self, folder, tmp_path):
        (tmp_path / "link").symlink_to(folder.path)

        with Folder.open(tmp_path / "link/below", make=True) as below:
            below.write_new("file", b"x")

        assert Path(folder.path, "below/file").read_bytes() == b"x"

    def test_one_that_others_may_write_is_refused(self, folder):
        Path(folder.path).chmod(0o770)

        with pytest.raises(Untrusted, match=f"{folder.path}: others may write to it"):
            Folder.open(folder.path)

    def test_a_relative_path_is_a_mistake(self):
        with pytest.raises(ValueError, match="is not absolute"):
            Folder.open("own")

    def test_one_that_stands_below_a_file_cannot_be_made(self, folder):
        folder.write_new("file", b"x")

        with pytest.raises(NotADirectoryError):
            Folder.open(Path(folder.path, "file/below"), make=True)


class TestSyncing:
    def test_an_error_is_not_hidden(self, folder, monkeypatch):
        monkeypatch.setattr(os, "fsync", fail(errno.EIO))

        with pytest.raises(OSError, match="Input/output"):
            folder.sync()

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
    def test_a_file_system_that_syncs_no_folders_is_taken_as_it_is(self, folder, monkeypatch, number):
        monkeypatch.setattr(os, "fsync", fail(number))

        folder.sync()


class TestNames:
    def test_renaming_moves_between_folders(self, folder):
        with folder.below("a", make=True) as below:
            folder.write_new("file", b"x")
            folder.rename("file", below, "moved")

            assert folder.names() == ["a"]
            assert below.read("moved", 1) == b"x"

    def test_removing_takes_the_link_and_not_what_it_leads_to(self, folder):
        folder.write_new("file", b"x")
        Path(folder.path, "link").symlink_to("file")

        folder.remove("link")

        assert folder.names() == ["file"]

    def test_listing_begins_at_the_beginning_every_time(self, folder):
        folder.write_new("file", b"x")

        assert folder.names() == folder.names() == ["file"]

    @given(st.binary(min_size=1, max_size=60).filter(lambda name: not {0, 47} & {*name} and name not in {b".", b".."}))
    def test_every_name_that_the_file_system_takes_is_one(self, tmp_path_factory, raw):
        with Folder.open(tmp_path_factory.mktemp("own")) as folder:
            folder.write_new(os.fsdecode(raw), raw)

            assert [os.fsdecode(raw)] == folder.names()
            assert raw == folder.read(os.fsdecode(raw), 60)


class TestTheProjectsOwn:
    def test_it_is_below_the_project_whoever_may_write_there(self, tmp_path):
        tmp_path.chmod(0o777)

        with sage_folder(tmp_path, "state", make=True) as state:
            assert state.path == str(tmp_path / ".sage/state")

        assert mode_of(tmp_path / ".sage/state") == 0o700

    @pytest.mark.parametrize("make", [True, False])
    def test_a_link_in_its_place_is_not_followed(self, tmp_path, make):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / ".sage").symlink_to("elsewhere")

        with pytest.raises(Untrusted, match=r"\.sage is a symbolic link"):
            sage_folder(tmp_path, make=make)


class TestErrors:
    def test_what_is_not_trusted_is_damage(self):
        error = Untrusted("m", "h", "p", "r")

        assert isinstance(error, StateCorrupted)
        assert error.exit_code is ExitCode.STATE_CORRUPTED
        assert str(error) == "m"

    def test_it_crosses_a_process_border(self):
        error = pickle.loads(pickle.dumps(Untrusted("m", "h", "p", "r")))

        assert ("m", "h", "p", "r") == (error.message, error.hint, error.path, error.reason)

    @pytest.mark.parametrize(
        ("error", "reason"),
        [(OSError(errno.ENOSPC, "whatever"), "no space left on device"), (OSError("words"), "words")],
    )
    def test_what_the_disk_refuses_is_said_in_one_line(self, error, reason):
        said = unwritable(error, "/p")

        assert isinstance(said, StateUnwritable)
        assert said.message == f"state cannot be written: /p: {reason}"
        assert said.path == "/p"
        assert "--no-state" in said.hint


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_what_others_may_write_is_read_where_that_does_not_matter(tmp_path, mode):
    path = tmp_path / "f"
    path.write_text("x")
    path.chmod(mode)
    with Folder.given(tmp_path) as folder:
        assert folder.read("f", MOST, shared=True) == b"x"
        with pytest.raises(Untrusted):
            folder.read("f", MOST)


def test_a_file_is_put_in_place_with_its_mode(tmp_path):
    with Folder.given(tmp_path) as folder:
        folder.write_new("f", b"x", mode=0o664)

    assert mode_of(tmp_path / "f") == 0o664
