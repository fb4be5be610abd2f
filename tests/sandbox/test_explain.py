"""From a refusal to the grant that was missing, or to nothing where no grant would have helped."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="union-attr"

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.outcome import Violation
from sage_sandbox.policy import Policy
from sage_sandbox.sandbox.explain import allow_option, explain_error, explain_text, outside_hint
from sage_sandbox.sandbox.job import Job


@pytest.fixture
def world(tmp_path):
    """A project, and something beside it."""
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "src/main.py").write_text("")
    (project / "two words").write_text("")
    (project / ".env").write_text("")
    (tmp_path / "elsewhere").write_text("")
    return tmp_path


def job(world, argv=(), **policy):
    return Job("command" if argv else "python", argv=argv, project=str(world / "project"), policy=Policy(**policy))


def error(code, path=None):
    return {"errno": code, "path": path}


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR])
def test_a_file_that_is_there_outside_could_have_been_granted(code, world):
    assert Violation("tried to read src/main.py", "read:src/main.py") == explain_error(
        job(world), error(code, "src/main.py")
    )


def test_a_path_outside_the_project_stays_absolute(world):
    path = str(world / "elsewhere")

    assert Violation(f"tried to read {path}", f"read:{path}") == explain_error(job(world), error(errno.ENOENT, path))


def test_the_project_itself_is_a_dot(world):
    project = str(world / "project")

    assert Violation("tried to read .", "read:.") == explain_error(job(world), error(errno.ENOENT, project))


def test_a_path_that_climbs_is_named_by_where_it_leads(world):
    path = str(world / "elsewhere")

    assert f"read:{path}" == explain_error(job(world), error(errno.ENOENT, "src/../../elsewhere")).allow


@pytest.mark.parametrize(
    "path",
    [
        "src/missing.py",
        "/nowhere/at/all",
        "/proc/1/environ",
        "/dev/sda",
        "/sandbox/box/x",
        "/packages/x",
        "/usr/bin/env",
        "x\0y",
        "",
    ],
)
def test_no_grant_would_have_helped_with(path, world):
    assert explain_error(job(world), error(errno.ENOENT, path)) is None


def test_what_is_granted_needs_no_other_grant(world):
    granted = job(world, read=(str(world / "project"),))

    assert explain_error(granted, error(errno.EACCES, "src/main.py")) is None


def test_a_hidden_name_beneath_a_grant_has_to_be_granted_itself(world):
    granted = job(world, read=(str(world / "project"),))

    assert "read:.env" == explain_error(granted, error(errno.ENOENT, ".env")).allow


@pytest.mark.parametrize(
    ("path", "policy", "allow"),
    [
        ("src/main.py", {}, "write:src/main.py"),
        ("src/new.py", {}, "write:src"),
        ("new", {}, "write:."),
        ("missing/new", {}, None),
        ("src/main.py", {"write": ("project/src",)}, None),
        ("src/main.py", {"write_through": ("project",)}, None),
        ("src/main.py", {"read": ("project",)}, "write:src/main.py"),
    ],
)
def test_a_read_only_place_could_have_been_granted_for_writing(path, policy, allow, world):
    policy = {kind: tuple(str(world / path) for path in paths) for kind, paths in policy.items()}
    found = explain_error(job(world, **policy), error(errno.EROFS, path))

    assert allow == (found and found.allow)


@pytest.mark.parametrize(
    "code", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ECONNREFUSED, errno.EACCES]
)
def test_a_network_that_cannot_be_reached_is_explained_by_the_missing_loopback(code, world):
    assert Violation("tried to reach a network", "loopback") == explain_error(job(world), error(code))
    assert explain_error(job(world, loopback=True), error(code)) is None
    past = explain_error(job(world, net=("example.org:443",)), error(code))
    assert past == Violation("tried to reach a network past the proxy at 127.0.0.1:3128")


@pytest.mark.parametrize(
    ("text", "net", "hint"),
    [
        ("[Errno -3] Temporary failure in name resolution", (), "a host is reached with --allow net:HOST:PORT"),
        ("could not connect: Name or service not known", ("h:1",), "hosts are reached through the proxy"),
        ("fatal: transport 'ssh' not allowed", ("h:1",), "only http and https go through the proxy"),
        ("fatal: transport 'git' not allowed", ("h:1",), "only http and https go through the proxy"),
        ("no", ("h:1",), ""),
    ],
)
def test_whoever_looks_for_a_host_by_himself_is_told_the_way(text, net, hint, world):
    assert outside_hint(job(world, net=net), text).startswith(hint)
    assert bool(hint) == bool(outside_hint(job(world, net=net), text))


@pytest.mark.parametrize(
    "described",
    [{}, {"errno": "2"}, {"errno": None, "path": "src"}, {"errno": errno.EINVAL}, {"errno": errno.EIO, "path": "src"}],
)
def test_other_errors_have_no_explanation(described, world):
    assert explain_error(job(world), described) is None


@pytest.mark.parametrize(
    ("text", "allow"),
    [
        ("cat: src/main.py: No such file or directory", "read:src/main.py"),
        ("cat: 'two words': No such file or directory", None),
        ("ls: cannot access 'src': No such file or directory", "read:src"),
        ("Traceback:\nFileNotFoundError: [Errno 2] No such file or directory: 'src/main.py'", "read:src/main.py"),
        ("open(./src/main.py): Permission denied", "read:src/main.py"),
        ("touch: cannot touch 'src/new': Read-only file system", "write:src"),
        ("nothing is wrong with src/main.py", None),
        ("", None),
        ("x: not found", None),
    ],
)
def test_what_a_command_says_names_the_path(text, allow, world):
    found = explain_text(job(world, argv=("cat", "src") if "cannot access" in text else ("cat",)), text)

    assert allow == (found and found.allow)


def test_an_argument_is_looked_at_where_the_command_names_no_path(world):
    found = explain_text(job(world, argv=("grep", "-r", "x", "src")), "grep: No such file or directory")

    assert "read:src" == found.allow


def test_arguments_do_not_matter_where_nothing_was_refused(world):
    assert explain_text(job(world, argv=("grep", "src")), "grep: bad regular expression") is None


def test_a_flood_of_paths_is_cut(world):
    text = "No such file " + "/nowhere/x " * 100_000 + "src/main.py"

    assert explain_text(job(world, argv=("cat",)), text) is None


@given(st.text(), st.lists(st.text(), min_size=1), st.integers(-1, 200), st.text())
def test_never_raises(text, argv, code, path):
    asked = Job("command", argv=tuple(arg.replace("\0", "") for arg in argv), project="/nowhere")

    assert isinstance(explain_text(asked, text.replace("\0", "") + ": No such file"), Violation | None)
    assert isinstance(explain_error(asked, error(code, path)), Violation | None)


@pytest.mark.parametrize(
    ("violation", "option"),
    [
        (None, ""),
        (Violation("tried something"), ""),
        (Violation("tried", "read:src"), "--allow read:src"),
        (Violation("tried", "read:two words; rm -rf"), "--allow 'read:two words; rm -rf'"),
    ],
)
def test_a_grant_is_spelled_as_the_user_types_it(violation, option):
    assert option == allow_option(violation)
