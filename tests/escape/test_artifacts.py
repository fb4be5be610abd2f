"""What an operation leaves in $SAGE_OUT: plain files are taken over, everything else is named and nothing is taken."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from escape.attempt import ROOT, Bench, Did, plain

from sage_sandbox.outcome import Outcome
from sage_sandbox.policy import Limits

Collect = Callable[..., Outcome]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the artifacts of one operation go."""
    return tmp_path / "artifacts/operation.tmp"


@pytest.fixture
def collect(bench: Bench, place: Path) -> Collect:
    """Run a body in which ``out`` is the folder for artifacts, and collect them."""

    def run(body: str, limits: Limits = Limits()) -> Outcome:
        code = "import os\nout = os.environ['SAGE_OUT']\ndef run():\n    " + body.replace("\n", "\n    ")
        return bench.run(code, artifacts=str(place).removesuffix(".tmp"), limits=limits)

    return run


def refused(outcome: Outcome, place: Path, words: str) -> None:
    """Assert that it was not taken over, and why."""
    assert "rejected" == outcome.status
    assert words in outcome.error
    assert not place.exists()
    assert not place.with_suffix(".tmp").exists()


def test_a_file_is_taken_over_without_rights_to_run_it(collect: Collect, place: Path) -> None:
    outcome = collect("open(out + '/a', 'w').write('x')\nos.chmod(out + '/a', 0o777)")

    assert outcome.ok
    assert "x" == (place / "a").read_text()
    assert 0o600 == stat.S_IMODE((place / "a").stat().st_mode)
    assert os.geteuid() == (place / "a").stat().st_uid


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../../../etc/passwd", "a", "/nonexistent"])
def test_a_symlink_is_refused(collect: Collect, place: Path, tmp_path: Path, target: str) -> None:
    body = f"open(out + '/a', 'w').close()\nos.symlink({target!r}, out + '/link')"
    plain(body, out=str(tmp_path))

    refused(collect(body), place, "'link' is no regular file")
    assert (tmp_path / "link").is_symlink()


def test_a_symlink_to_a_folder_is_refused(collect: Collect, place: Path) -> None:
    refused(collect("os.symlink('/usr', out + '/link')"), place, "'link' is no regular file")


def test_the_folder_itself_as_a_symlink_is_refused(collect: Collect, place: Path) -> None:
    outcome = collect("os.rmdir(out)\nos.symlink('/etc', out)")

    assert ("rejected", False) == (outcome.status, place.exists())


def test_the_folder_itself_as_a_fifo_is_refused(collect: Collect, place: Path) -> None:
    outcome = collect("os.rmdir(out)\nos.mkfifo(out)")

    assert ("rejected", False) == (outcome.status, place.exists())


def test_a_hard_link_is_refused(collect: Collect, place: Path, tmp_path: Path) -> None:
    body = "open(out + '/a', 'w').close()\nos.link(out + '/a', out + '/b')"
    plain(body, out=str(tmp_path))

    refused(collect(body), place, "has more than one link")
    assert 2 == (tmp_path / "b").stat().st_nlink


def test_a_hard_link_to_a_file_beside_is_refused(collect: Collect, place: Path) -> None:
    refused(collect("open('/tmp/a', 'w').close()\nos.link('/tmp/a', out + '/b')"), place, "has more than one link")


def test_a_fifo_is_refused_and_not_waited_for(collect: Collect, place: Path, tmp_path: Path) -> None:
    plain("os.mkfifo(out + '/pipe')", out=str(tmp_path))

    refused(collect("os.mkfifo(out + '/pipe')"), place, "'pipe' is no regular file")


def test_a_socket_is_refused(collect: Collect, place: Path) -> None:
    body = "import socket\nmade = socket.socket(socket.AF_UNIX)\nos.chdir(out)\nmade.bind('s')"

    refused(collect(body), place, "'s' is no regular file")


def test_a_sparse_file_is_no_larger_than_the_disk_limit(collect: Collect, place: Path, tmp_path: Path) -> None:
    """It costs nothing inside and its whole size outside: the file size limit holds for what it pretends to be."""
    plain("os.truncate(os.open(out + '/a', os.O_CREAT | os.O_WRONLY, 0o600), 1 << 40)", out=str(tmp_path))
    outcome = collect(
        "os.truncate(os.open(out + '/a', os.O_CREAT | os.O_WRONLY, 0o600), 1 << 40)", Limits(disk=1 << 20)
    )

    refused(outcome, place, "disk limit 1 MiB exceeded")
    assert 1 << 40 == (tmp_path / "a").stat().st_size


def test_a_sparse_file_is_refused(collect: Collect, place: Path) -> None:
    body = "for n in range(40):\n    os.truncate(os.open(f'{out}/{n}', os.O_CREAT | os.O_WRONLY, 0o600), 8 << 20)"

    refused(collect(body, Limits(disk=8 << 20)), place, "is sparse")


def test_a_setuid_bit_is_not_set_and_not_kept(collect: Collect, place: Path, tmp_path: Path) -> None:
    body = "open(out + '/a', 'w').close()\nos.chmod(out + '/a', 0o4755)"
    plain(body, out=str(tmp_path))
    outcome = collect(body)

    assert (tmp_path / "a").stat().st_mode & stat.S_ISUID
    refused(outcome, place, "PermissionError")


@pytest.mark.parametrize("depth", [17, 200])
def test_a_nesting_without_end_is_refused(collect: Collect, place: Path, tmp_path: Path, depth: int) -> None:
    body = (
        f"for n in range({depth}):\n"
        "    os.mkdir(out + '/d')\n"
        "    os.chdir(out + '/d')\n"
        "    out = '.'\n"
        "open('f', 'w').close()"
    )
    plain(body, out=str(tmp_path))

    refused(collect("global out\n" + body), place, "nested deeper than 16")


def test_sixteen_levels_are_taken_over(collect: Collect, place: Path) -> None:
    outcome = collect("path = out + '/d' * 15\nos.makedirs(path)\nopen(path + '/f', 'w').close()")

    assert outcome.ok
    assert (place / "/".join("d" * 15) / "f").is_file()


def test_two_thousand_files_are_refused(collect: Collect, place: Path) -> None:
    refused(collect("for n in range(2000):\n    open(f'{out}/{n}', 'w').close()"), place, "more than 1,000 files")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\u202eb", "\x7f", "a\u200bb", "\udc80\udcff", "\u2028"])
def test_a_name_that_is_no_printable_text_is_refused(collect: Collect, place: Path, tmp_path: Path, name: str) -> None:
    body = f"open(out + '/' + {name!r}, 'w').close()"
    plain(body, out=str(tmp_path))
    outcome = collect(body)

    refused(outcome, place, "whose name is no printable text")
    assert outcome.error.isprintable()


def test_what_is_unreadable_is_refused_or_taken_over_whole(collect: Collect, place: Path) -> None:
    """The supervisor reads it as the user it is: root may, the owner may not."""
    outcome = collect("open(out + '/a', 'w').write('x')\nos.chmod(out + '/a', 0)")

    assert ROOT == outcome.ok
    assert ROOT == place.exists()


def test_an_operation_that_failed_leaves_nothing(collect: Collect, place: Path) -> None:
    outcome = collect("open(out + '/a', 'w').write('x')\nraise ValueError")

    assert ("rejected", False) == (outcome.status, place.exists())


def test_nothing_is_collected_from_beside_the_folder(bench: Bench, collect: Collect, place: Path) -> None:
    outcome = collect(
        "open('/tmp/a', 'w').close()\nopen(os.environ['HOME'] + '/b', 'w').close()\nopen(out + '/c', 'w').close()"
    )

    assert outcome.ok
    assert ["c"] == sorted(os.listdir(place))
    assert Did(False) == bench.outside("def act(path):\n    return os.path.exists(path)", {"path": str(place / "a")})


def test_a_link_in_the_way_to_the_artifacts_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    """A repository may bring a `.sage` with it, and an operation's name may be that of a folder of the user's.

    What lies above the phase is looked at before a run (`sage_sandbox.api`).
    """
    victim = tmp_path / "home/operation"
    victim.mkdir(parents=True)
    (victim / "thesis").write_text("precious")
    feature = tmp_path / ".sage/artifacts/feature"
    feature.mkdir(parents=True)
    (feature / "phase").symlink_to(victim.parent)
    code = "import os\ndef run():\n    open(os.environ['SAGE_OUT'] + '/a', 'w').write('x')"
    bench.run(code, artifacts=str(feature / "phase/operation"))

    assert ["thesis"] == sorted(os.listdir(victim))
