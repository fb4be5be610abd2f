"""What is taken over from a dead operation: hand-made work folders with all a hostile one may leave, and real ones."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="attr-defined,list-item"

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

from sage_sandbox.policy import ARTIFACT_DEPTH_MAX, ARTIFACT_FILES_MAX, ARTIFACTS_MAX, Policy
from sage_sandbox.sandbox import collect
from sage_sandbox.sandbox.collect import Uncollectable, commit, find_artifacts, plan_commit, take_artifacts
from sage_sandbox.sandbox.inside import entry, syscalls
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.steps import Stage

ROOT = os.geteuid() == 0


class Bench:
    """A work folder as an operation left it, and what it is collected into."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.out = self.work / "box/out"
        self.upper = self.work / "stage/0/upper"
        self.target = folder / "granted"
        self.artifacts = folder / "artifacts/feature/phase/operation.tmp"
        for path in (self.out, self.upper, self.target):
            path.mkdir(parents=True)
        self.fd = os.open(self.work, os.O_PATH | os.O_DIRECTORY)

    def collect(self):
        return take_artifacts(self.fd, "box", find_artifacts(self.fd, "box"), str(self.artifacts).removesuffix(".tmp"))

    def commit(self, *unprotected, path=None, folder=True, most=64 << 20):
        stage = Stage(0, str(path or self.target), folder)
        return commit(self.fd, plan_commit(self.fd, (stage,), frozenset({stage.path}), unprotected, most))

    def tree(self, top=None):
        """Everything beneath a folder: relative path to text (None for a folder, the target of a link)."""
        top = top or self.target
        found = {}
        for path in sorted(top.rglob("*")):
            name = str(path.relative_to(top))
            found[name] = f"-> {path.readlink()}" if path.is_symlink() else None if path.is_dir() else path.read_text()
        return found


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    os.close(made.fd)


@pytest.fixture
def leave(tmp_path):
    """Leave something at a path: the hostile kinds by name."""

    def make(path, kind):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "symlink":
            path.symlink_to("/etc/passwd")
        elif kind == "dangling symlink":
            path.symlink_to("nowhere")
        elif kind == "hardlink":
            (tmp_path / "elsewhere").write_text("of somebody else")
            os.link(tmp_path / "elsewhere", path)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            here = os.open(path.parent, os.O_PATH)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)
        elif kind == "device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        elif kind == "sparse":
            path.write_text("x")
            os.truncate(path, 10 << 20)

    return make


HOSTILE = [
    "symlink", "dangling symlink", "hardlink", "fifo", "socket",
    pytest.param("device", marks=pytest.mark.skipif(not ROOT, reason="mknod of a device: root only")),
]  # fmt: skip


def whiteout(path):
    """What an overlay leaves for a deleted name; allowed to a user since Linux 5.8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o600, 0)


def opaque(path):
    path.mkdir(parents=True, exist_ok=True)
    try:
        os.setxattr(path, "user.overlay.opaque", b"y")
    except OSError as error:
        pytest.skip(f"user extended attributes here: {error}")


# Artifacts.


def test_artifacts_are_copied_with_their_digests(bench):
    (bench.out / "a").write_text("one")
    (bench.out / "deep/er").mkdir(parents=True)
    (bench.out / "deep/er/b").write_text("two")
    (bench.out / "empty").mkdir()
    found = {artifact.path: (artifact.size, artifact.sha256) for artifact in bench.collect()}

    assert {"a": (3, hashlib.sha256(b"one").hexdigest()), "deep/er/b": (3, hashlib.sha256(b"two").hexdigest())} == found
    assert {"a": "one", "deep": None, "deep/er": None, "deep/er/b": "two"} == bench.tree(bench.artifacts)
    assert [bench.artifacts.name] == os.listdir(bench.artifacts.parent)


def test_an_artifact_is_its_owners_alone_and_cannot_be_executed(bench):
    (bench.out / "tool").write_text("#!/bin/sh")
    (bench.out / "tool").chmod(0o6777)
    bench.collect()

    assert 0o100600 == (bench.artifacts / "tool").stat().st_mode
    assert 0o40700 == bench.artifacts.stat().st_mode


def test_nothing_left_is_no_folder(bench):
    (bench.out / "empty").mkdir()

    assert () == bench.collect()
    assert not bench.artifacts.exists()


def test_what_an_earlier_attempt_left_is_replaced(bench):
    bench.artifacts.mkdir(parents=True)
    (bench.artifacts / "old").write_text("")
    (bench.out / "new").write_text("")
    bench.collect()

    assert {"new": ""} == bench.tree(bench.artifacts)


@pytest.mark.parametrize(
    ("kind", "why"),
    [(kind, "has more than one link" if kind == "hardlink" else "is no regular file") for kind in HOSTILE[:-1]]
    + [pytest.param("device", "is no regular file", marks=HOSTILE[-1].marks), ("sparse", "is sparse")],
)
def test_an_artifact_that_is_no_plain_file_refuses_the_lot(kind, why, bench, leave):
    (bench.out / "good").write_text("good")
    leave(bench.out / "deep/bad", kind)

    with pytest.raises(Uncollectable, match=f"artifact 'deep/bad' {why}"):
        bench.collect()
    assert not bench.artifacts.parent.exists()


def test_a_folder_that_is_a_link_is_not_followed(bench):
    shutil.rmtree(bench.out)
    bench.out.symlink_to("/etc")

    with pytest.raises(OSError, match="openat2"):
        bench.collect()


def test_a_file_that_becomes_a_link_while_it_is_collected_is_not_followed(bench, monkeypatch):
    (bench.out / "a").write_text("x" * 5000)
    plain = collect._check_artifacts

    def swap(files):
        plain(files)
        (bench.out / "a").unlink()
        (bench.out / "a").symlink_to("/etc/passwd")

    monkeypatch.setattr(collect, "_check_artifacts", swap)

    with pytest.raises(OSError, match="openat2"):
        bench.collect()
    assert [] == os.listdir(bench.artifacts.parent)


def test_a_file_that_grew_refuses_the_lot(bench, monkeypatch):
    (bench.out / "a").write_text("x")
    monkeypatch.setattr(collect, "_check_artifacts", lambda _files: (bench.out / "a").write_text("xx"))

    with pytest.raises(Uncollectable, match="a file grew while it was taken over"):
        bench.collect()
    assert [] == os.listdir(bench.artifacts.parent)


def test_too_many_artifacts_refuse_the_lot(bench):
    for number in range(ARTIFACT_FILES_MAX + 1):
        (bench.out / str(number)).touch()

    with pytest.raises(Uncollectable, match="more than 1,000 files"):
        bench.collect()


def test_too_large_artifacts_refuse_the_lot(bench, monkeypatch):
    monkeypatch.setattr(collect, "ARTIFACTS_MAX", 10)
    for name in "ab":
        (bench.out / name).write_text("123456")

    with pytest.raises(Uncollectable, match="artifacts: more than 10 B"):
        bench.collect()
    assert ARTIFACTS_MAX > 10


@pytest.mark.parametrize("depth", [ARTIFACT_DEPTH_MAX, ARTIFACT_DEPTH_MAX + 1])
def test_depth_is_capped(depth, bench):
    path = bench.out.joinpath(*["d"] * (depth - 1))
    path.mkdir(parents=True)
    (path / "file").write_text("")

    if depth > ARTIFACT_DEPTH_MAX:
        with pytest.raises(Uncollectable, match="nested deeper than 16"):
            bench.collect()
    else:
        assert 1 == len(bench.collect())


def test_more_entries_than_can_be_walked_refuse_the_lot(bench, monkeypatch):
    monkeypatch.setattr(collect, "ARTIFACT_FILES_MAX", 1)
    for number in range(21):
        (bench.out / str(number)).mkdir()

    with pytest.raises(Uncollectable, match="left more than 20 files and folders"):
        bench.collect()


@pytest.mark.parametrize("name", [b"new\nline", b"\x1b[31m", b"\xff", "\u202e".encode(), b"tab\t", "\u2028".encode()])
def test_a_name_that_is_no_printable_text_refuses_the_lot(name, bench):
    os.close(os.open(os.path.join(os.fsencode(bench.out), name), os.O_CREAT | os.O_WRONLY))

    with pytest.raises(Uncollectable, match="a file whose name is no printable text: "):
        bench.collect()


@pytest.mark.parametrize("name", ["é", "日本", "with space", "-rf", "x" * 255, "*", "😀"])
def test_a_name_that_is_text_is_kept(name, bench):
    (bench.out / name).write_text("x")

    assert (name,) == tuple(artifact.path for artifact in bench.collect())


# Staged writes.


def test_changes_are_carried_out_file_by_file(bench):
    for name in ("kept", "changed", "gone", "folder/inner"):
        (bench.target / name).parent.mkdir(exist_ok=True)
        (bench.target / name).write_text("before")
    (bench.upper / "changed").write_text("after")
    whiteout(bench.upper / "gone")
    (bench.upper / "new/deep").mkdir(parents=True)
    (bench.upper / "new/deep/file").write_text("new")
    whiteout(bench.upper / "folder")
    written = bench.commit()

    assert {"kept": "before", "changed": "after", "new": None, "new/deep": None, "new/deep/file": "new"} == bench.tree()
    assert {str(bench.target / name) for name in ("changed", "gone", "new/deep/file", "folder")} == set(written)


def test_nothing_staged_changes_nothing(bench):
    assert () == bench.commit()


def test_more_than_the_work_folder_could_hold_refuses_the_lot(bench, leave):
    leave(bench.upper / "sparse", "sparse")

    with pytest.raises(Uncollectable, match="wrote files of more than 1 MiB in all"):
        bench.commit(most=1 << 20)
    assert {} == bench.tree()


def test_a_folder_in_the_place_of_what_is_no_folder_any_more_refuses_the_lot(bench):
    (bench.target / "name").write_text("became a file while the operation ran")
    (bench.upper / "name").mkdir()

    with pytest.raises(Uncollectable, match="wrote into 'name', which is no folder any more"):
        bench.commit()


def test_what_is_written_can_be_read_by_all_and_executed_by_none(bench):
    (bench.upper / "tool").write_text("#!/bin/sh")
    (bench.upper / "tool").chmod(0o6777)
    (bench.upper / "folder").mkdir(mode=0o777)
    bench.commit()

    assert 0o100644 == (bench.target / "tool").stat().st_mode
    assert 0o755 == stat.S_IMODE((bench.target / "folder").stat().st_mode) | 0o700


@pytest.mark.skipif(not ROOT, reason="files of another owner: root only")
def test_what_root_writes_belongs_to_the_folders_owner(bench):
    os.chown(bench.target, 1000, 1001)
    (bench.upper / "folder").mkdir()
    (bench.upper / "folder/new").write_text("")
    bench.commit()

    for name in ("folder", "folder/new"):
        status = (bench.target / name).stat()
        assert (1000, 1001) == (status.st_uid, status.st_gid)


def test_an_opaque_folder_replaces_what_was_there(bench):
    (bench.target / "folder").mkdir()
    (bench.target / "folder/old").write_text("")
    opaque(bench.upper / "folder")
    (bench.upper / "folder/new").write_text("new")
    bench.commit()

    assert {"folder": None, "folder/new": "new"} == bench.tree()


def test_a_folder_in_the_place_of_a_file_replaces_it(bench):
    (bench.target / "name").write_text("a file")
    opaque(bench.upper / "name")
    (bench.upper / "name/inner").write_text("new")
    bench.commit()

    assert {"name": None, "name/inner": "new"} == bench.tree()


def test_a_file_in_the_place_of_a_folder_replaces_it(bench):
    # rm -r name; echo new > name: the overlay's upper layer then holds a plain file and no whiteout.
    (bench.target / "name").mkdir()
    (bench.target / "name/inner").write_text("old")
    (bench.upper / "name").write_text("new")
    bench.commit()

    assert {"name": "new"} == bench.tree()


def test_a_file_in_the_place_of_a_folder_with_protected_names_refuses_the_lot(bench):
    (bench.target / "name/.git").mkdir(parents=True)
    (bench.upper / "name").write_text("new")
    (bench.upper / "a").write_text("new")

    with pytest.raises(Uncollectable):
        bench.commit()
    assert {"name": None, "name/.git": None} == bench.tree()


def test_deleting_what_is_not_there_is_done(bench):
    whiteout(bench.upper / "never/was")
    bench.commit()

    assert {"never": None} == bench.tree()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_staged_file_that_is_no_plain_file_refuses_the_lot(kind, bench, leave):
    (bench.upper / "a").write_text("good")
    leave(bench.upper / "deep/bad", kind)

    with pytest.raises(Uncollectable, match=r"wrote 'deep/bad', which (is no regular file|has more than one link)"):
        bench.commit()
    assert {} == bench.tree()


@pytest.mark.parametrize(
    "name",
    [
        ".git/hooks/pre-commit", "deep/.git/config", ".GIT/config", ".g\u200cit/x", ".env", ".env.production",
        "a/.envrc", "CLAUDE.md", "docs/AGENTS.md", ".github/workflows/ci.yml", ".vscode/settings.json", "conftest.py",
        "x.pth", "mise.toml",
    ],
)  # fmt: skip
def test_a_protected_name_refuses_the_lot(name, bench):
    (bench.upper / "good").write_text("good")
    (bench.upper / name).parent.mkdir(parents=True, exist_ok=True)
    (bench.upper / name).write_text("evil")

    with pytest.raises(Uncollectable, match=r"wrote .*, (a protected name|whose name)|no printable text"):
        bench.commit()
    assert {} == bench.tree()


@pytest.mark.parametrize(
    ("written", "granted", "name"),
    [
        (".env", "", ".env"),
        ("a/.github/workflows", "", ".github/workflows"),
        ("deep/er/.envrc", "", ".envrc"),
        ("workflows", ".github", ".github/workflows"),
    ],
)
def test_a_protected_name_says_which_option_opens_it(written, granted, name, bench):
    path = bench.target / granted
    path.mkdir(exist_ok=True)
    (bench.upper / written).mkdir(parents=True)

    with pytest.raises(Uncollectable, match=f"wrote '{written}', a protected name") as caught:
        bench.commit(path=path)
    assert f"--allow 'write!:{name}'" == caught.value.hint
    assert (str(path / written),) == (str(path / written), *bench.commit(name, path=path))


def test_an_unprotected_name_is_written(bench):
    (bench.upper / "conftest.py").write_text("x = 1")
    bench.commit("conftest.py")

    assert {"conftest.py": "x = 1"} == bench.tree()


@pytest.mark.parametrize("held", [".git", "deep/.env", "deep/er/server.pem", "id_rsa"])
@pytest.mark.parametrize("how", [whiteout, opaque])
def test_a_folder_that_holds_a_protected_name_cannot_be_deleted(held, how, bench):
    path = bench.target / "folder" / held
    path.parent.mkdir(parents=True)
    path.write_text("kept")
    how(bench.upper / "folder")
    before = bench.tree()

    with pytest.raises(Uncollectable, match=rf"removed 'folder', which holds '{path.name}', a protected name"):
        bench.commit()
    assert before == bench.tree()


@pytest.mark.usefixtures("_namespaces")
def test_a_folder_that_holds_another_file_system_cannot_be_deleted(bench, in_child, who):
    mounted = bench.target / "folder/mounted"
    mounted.mkdir(parents=True)
    whiteout(bench.upper / "folder")

    def mount_and_commit():
        if not who.privileged:
            entry.enter_user_namespace()
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("none", str(mounted), "tmpfs")
        try:
            bench.commit()
        except Uncollectable as error:
            return error.message
        return None

    assert "removed 'folder', which holds another file system" == in_child(mount_and_commit)
    assert mounted.is_dir()


def test_a_protected_name_itself_cannot_be_deleted(bench):
    (bench.target / ".env").write_text("kept")
    whiteout(bench.upper / ".env")

    with pytest.raises(Uncollectable, match="a protected name"):
        bench.commit()
    assert {".env": "kept"} == bench.tree()


def test_a_folder_that_holds_an_unprotected_name_can_be_deleted(bench):
    (bench.target / "folder").mkdir()
    (bench.target / "folder/conftest.py").write_text("")
    whiteout(bench.upper / "folder")
    bench.commit("conftest.py")

    assert {} == bench.tree()


def test_a_link_can_be_deleted_whatever_it_points_at(bench, tmp_path):
    (tmp_path / "other/.git").mkdir(parents=True)
    (bench.target / "link").symlink_to(tmp_path / "other")
    whiteout(bench.upper / "link")
    bench.commit()

    assert {} == bench.tree()
    assert (tmp_path / "other/.git").is_dir()


@pytest.mark.parametrize("name", ["server.pem", "tls.key", "id_rsa", ".netrc"])
def test_a_hidden_file_is_not_overwritten_unseen(name, bench):
    (bench.target / name).write_text("the user's own")
    (bench.upper / name).write_text("new")

    with pytest.raises(Uncollectable):
        bench.commit()
    assert {name: "the user's own"} == bench.tree()


def test_a_link_outside_is_replaced_not_followed(bench, tmp_path):
    (tmp_path / "victim").write_text("kept")
    (bench.target / "name").symlink_to(tmp_path / "victim")
    (bench.upper / "name").write_text("new")
    bench.commit()

    assert {"name": "new"} == bench.tree()
    assert "kept" == (tmp_path / "victim").read_text()


def test_a_folder_outside_that_became_a_link_is_not_followed(bench, tmp_path):
    (tmp_path / "victim").mkdir()
    (bench.target / "folder").symlink_to(tmp_path / "victim")
    (bench.upper / "folder").mkdir()
    (bench.upper / "folder/new").write_text("")

    with pytest.raises(Uncollectable, match="which is no folder any more"):
        bench.commit()
    assert [] == os.listdir(tmp_path / "victim")


def test_a_grant_that_became_a_link_is_not_followed(bench, tmp_path):
    (bench.upper / "new").write_text("")
    bench.target.rmdir()
    (tmp_path / "victim").mkdir()
    bench.target.symlink_to(tmp_path / "victim")

    with pytest.raises(OSError, match="openat2"):
        bench.commit()
    assert [] == os.listdir(tmp_path / "victim")


def test_a_write_that_fails_leaves_no_temporary_file(bench, monkeypatch):
    (bench.target / "name").write_text("before")
    (bench.upper / "name").write_text("after")

    def refuse(_fd):
        raise OSError(5, "fsync")

    monkeypatch.setattr(os, "fsync", refuse)

    with pytest.raises(OSError, match="fsync"):
        bench.commit()
    assert {"name": "before"} == bench.tree()


def test_a_staged_file_is_written_if_it_changed(bench):
    (bench.target / "file").write_text("before")
    copy = bench.work / "stage/0/file"
    copy.write_text("before")

    assert () == bench.commit(path=bench.target / "file", folder=False)

    copy.write_text("after")

    assert (str(bench.target / "file"),) == bench.commit(path=bench.target / "file", folder=False)
    assert {"file": "after"} == bench.tree()


def test_a_staged_file_longer_than_what_it_was_is_a_change(bench):
    (bench.target / "file").write_bytes(b"x" * (1 << 20))
    (bench.work / "stage/0/file").write_bytes(b"x" * ((1 << 20) + 1))
    bench.commit(path=bench.target / "file", folder=False)

    assert (1 << 20) + 1 == (bench.target / "file").stat().st_size


def test_no_descriptor_is_left_open(bench, leave):
    (bench.out / "a").write_text("x")
    (bench.upper / "a").write_text("x")
    before = os.listdir("/proc/self/fd")
    bench.collect()
    bench.commit()
    leave(bench.upper / "bad", "fifo")
    with pytest.raises(Uncollectable):
        bench.commit()

    assert before == os.listdir("/proc/self/fd")


def test_what_was_opened_is_closed_where_the_kernel_refuses(bench):
    before = os.listdir("/proc/self/fd")

    with pytest.raises(OSError, match="openat2"), collect._opened(bench.fd, "../x", os.O_PATH):
        raise AssertionError("opened what is not beneath")
    assert before == os.listdir("/proc/self/fd")
    assert syscalls.RESOLVE_BENEATH & collect._BENEATH


# Through a real overlay.


@pytest.fixture
def operation(supervisor, project):
    """Run Python in a real sandbox with the project granted for writing."""

    def run(code, **policy):
        job = Job(
            "python", code="import os, shutil\ndef run():\n" + "".join(f"    {line}\n" for line in code.splitlines()),
            project=str(project), policy=Policy(**(policy or {"write": (str(project),)})),
            artifacts=str(project.parent / "artifacts/op"),
        )  # fmt: skip
        return supervisor.run(job)

    return run


def test_a_real_operations_changes_arrive(operation, project):
    (project / "gone").write_text("")
    (project / "folder").mkdir()
    (project / "folder/inner").write_text("")
    outcome = operation(
        "open('notes.txt', 'a').write('!')\nos.unlink('gone')\nshutil.rmtree('folder')\nos.mkdir('folder')\n"
        "os.makedirs('new/deep')\nopen('new/deep/file', 'w').write('x')\nos.chmod('new/deep/file', 0o755)\n"
        "open(os.environ['SAGE_OUT'] + '/report', 'w').write('done')"
    )

    assert outcome.ok, outcome
    assert "of the project!" == (project / "notes.txt").read_text()
    assert ["folder", "new", "notes.txt"] == sorted(os.listdir(project))
    assert [] == os.listdir(project / "folder")
    assert 0o100644 == (project / "new/deep/file").stat().st_mode
    assert os.geteuid() == (project / "new/deep/file").stat().st_uid
    assert {str(project / name) for name in ("notes.txt", "gone", "folder", "new/deep/file")} == set(outcome.written)
    assert ["report"] == [artifact.path for artifact in outcome.artifacts]
    assert "done" == (project.parent / "artifacts/op.tmp/report").read_text()


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("os.mkdir('.git')", "wrote '.git', a protected name"),
        ("os.symlink('/etc/passwd', 'link')", "wrote 'link', which is no regular file"),
        ("os.link('notes.txt', 'again')", "which has more than one link"),
        ("os.mkfifo('fifo')", "wrote 'fifo', which is no regular file"),
        ("os.symlink('/', os.environ['SAGE_OUT'] + '/link')", "artifact 'link' is no regular file"),
    ],
)
def test_a_real_operation_that_left_what_it_may_not_is_denied(code, why, operation, project):
    outcome = operation(f"open('new', 'w').write('x')\n{code}")

    assert ("rejected", "denied", b"null") == (outcome.status, outcome.reason, outcome.result)
    assert why in outcome.error


def test_a_real_operation_that_failed_changes_nothing(operation, project):
    outcome = operation("open('notes.txt', 'w').write('x')\nopen(os.environ['SAGE_OUT'] + '/a', 'w')\nraise ValueError")

    assert "error" == outcome.reason
    assert "of the project" == (project / "notes.txt").read_text()
    assert not (project.parent / "artifacts").exists()


def test_a_single_file_grant_is_committed(operation, project):
    outcome = operation("open('notes.txt', 'w').write('x')", write=(str(project / "notes.txt"),))

    assert (str(project / "notes.txt"),) == outcome.written
    assert "x" == (project / "notes.txt").read_text()


def test_files_that_cannot_be_taken_over_reject_the_operation(operation, project, monkeypatch):
    def refuse(*_args):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(collect, "take_artifacts", refuse)
    outcome = operation("pass")

    assert ("error", "taking over files: No space left on device: somewhere") == (outcome.reason, outcome.error)
