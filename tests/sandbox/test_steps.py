"""A policy compiled: for any policy the steps stand in their one order, and every granted path is in them once."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="arg-type"

from __future__ import annotations

import ast
import io
import os
import resource
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sandbox.standin import whole

from sage_sandbox.errors import NotGranted, SandboxUnavailable
from sage_sandbox.policy import Limits, MiB, Policy
from sage_sandbox.sandbox import steps
from sage_sandbox.sandbox.inside import syscalls, tools, wire
from sage_sandbox.sandbox.masks import Masker
from sage_sandbox.sandbox.system import SYSTEM_FOLDERS

ORDER = (
    "Namespaces", "Listen", "Work", "OwnRoot", "Place", "Attach", "Proc", "Landlock", "Pivot", "Identity",
    "Descriptors", "Defaults", "Rlimits", "Powerless", "Restrict", "Seccomp", "SelfCheck",
)  # fmt: skip
GRANTED_ONLY = {"OwnRoot", "Place", "Attach"}
RANK = {"read": 0, "write": 1, "write_through": 2}
USER = steps.Identity(1000, 1000, privileged=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tree to grant from, and a foundation that nobody will lay."""
    root = tmp_path_factory.mktemp("steps")
    for name in ("a/b/c/file", "a/file", "d/file", "top"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    foundation = steps.foundation(USER, str(root))
    return root, foundation._replace(landlock_abi=6)


PATHS = ("", "a", "a/b", "a/b/c", "a/b/c/file", "a/file", "d", "d/file", "top")
GRANTS = st.dictionaries(st.sampled_from(PATHS), st.sets(st.sampled_from(sorted(RANK)), min_size=1))
LIMITS = st.builds(
    Limits,
    memory=st.integers(1, 1 << 40),
    cpu_s=st.floats(0.01, 3600),
    pids=st.integers(1, 512),
    disk=st.integers(4096, 1 << 32),
)


def policy_of(root, grants, **more):
    modes = {mode: tuple(str(root / path) for path in grants if mode in grants[path]) for mode in RANK}
    return Policy(**modes, **more)


def compiled(base, policy=Policy(), limits=Limits(), who=USER, *, cgroup=False):
    root, foundation = base
    return steps.compile_steps(policy, limits, who, foundation, project=str(root), masker=Masker(), cgroup=cgroup)


def only(blueprint, kind):
    (step,) = [step for step in whole(blueprint) if isinstance(step, kind)]
    return step


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(GRANTS, LIMITS, st.booleans(), st.booleans(), st.sampled_from([(), ("example.org:443",)]))
def test_any_policy_compiles_to_the_one_order(base, grants, limits, loopback, cgroup, net):
    blueprint = compiled(base, policy_of(base[0], grants, loopback=loopback, net=net), limits, cgroup=cgroup)
    kinds = [type(step).__name__ for step in whole(blueprint)]

    assert kinds == sorted(kinds, key=ORDER.index)
    assert set(kinds) == set(ORDER) - (set() if grants else GRANTED_ONLY) - (set() if net else {"Listen"})
    assert not any(isinstance(step, wire.Attach) for step in blueprint.ahead)
    assert len(kinds) - kinds.count("Attach") == len(set(kinds) - {"Attach"})


def test_what_gives_rights_away_stands_after_what_needs_them():
    places = {kind: number for number, kind in enumerate(ORDER)}

    assert (
        places["Pivot"]
        < places["Identity"]
        < places["Powerless"]
        < places["Restrict"]
        < places["Seccomp"]
        < places["SelfCheck"]
    )
    assert set(ORDER) == set(wire.STEPS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(GRANTS)
def test_every_granted_path_is_attached_once_with_its_widest_right(base, grants):
    root, _foundation = base
    attached = [step for step in whole(compiled(base, policy_of(root, grants))) if isinstance(step, wire.Attach)]
    paths = [step.path for step in attached]

    assert {str(root / path) for path in grants} == set(paths)
    assert len(paths) == len(set(paths))
    for step in attached:
        widest = max(grants[step.path.removeprefix(str(root)).lstrip("/")], key=RANK.get)
        status = os.stat(step.path)

        assert (widest != "read", widest == "write") == (step.writable, step.staged)
        assert (status.st_dev, status.st_ino, (status.st_uid, status.st_gid)) == (step.device, step.inode, step.owner)
        assert step.folder == os.path.isdir(step.path)
        assert step.direct == (widest == "write_through" or (widest == "read" and not step.folder))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(GRANTS)
def test_parents_are_attached_before_what_lies_in_them(base, grants):
    paths = [step.path for step in whole(compiled(base, policy_of(base[0], grants))) if isinstance(step, wire.Attach)]

    for number, path in enumerate(paths):
        assert not any(path.startswith(later + "/") for later in paths[number:])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(GRANTS, st.randoms(use_true_random=False))
def test_equal_policies_make_equal_blueprints(base, grants, random):
    shuffled = dict(random.sample(list(grants.items()), len(grants)))

    assert compiled(base, policy_of(base[0], grants)) == compiled(base, policy_of(base[0], shuffled))


def test_other_limits_make_another_blueprint(base):
    plain = compiled(base)

    assert plain == compiled(base)
    for other in (Limits(memory=MiB), Limits(cpu_s=1), Limits(disk=MiB), Limits(pids=3)):
        assert plain != compiled(base, limits=other)
    assert plain == compiled(base, limits=Limits(timeout_s=1))


def test_nothing_granted_is_the_lean_view(base):
    blueprint = compiled(base)

    assert (False, (), ()) == (blueprint.bound, blueprint.stages, blueprint.owners)
    assert "." == blueprint.box
    assert wire.Namespaces(network=False, pantry=False) == only(blueprint, wire.Namespaces)
    assert wire.Landlock(False, "", (), (), False, 0) == only(blueprint, wire.Landlock)
    assert wire.Work(wire.BOX, "", 64 * MiB, 64 * MiB // 4096 + 1024, 1000, 1000) == only(blueprint, wire.Work)


def test_loopback_alone_has_its_own_network_and_ruleset(base):
    blueprint = compiled(base, Policy(loopback=True))

    assert wire.Namespaces(network=True, pantry=False) == only(blueprint, wire.Namespaces)
    assert wire.Landlock(True, "", (), (), True, 0) == only(blueprint, wire.Landlock)
    assert not blueprint.bound


def test_a_host_alone_has_a_listener_and_the_way_to_it(base):
    blueprint = compiled(base, Policy(net=("example.org:443",)))

    assert wire.Namespaces(network=True, pantry=False) == only(blueprint, wire.Namespaces)
    assert wire.Listen(steps.PROXY_PORT) == only(blueprint, wire.Listen)
    assert wire.Landlock(True, "", (), (), False, steps.PROXY_PORT) == only(blueprint, wire.Landlock)
    assert not blueprint.bound
    assert blueprint == compiled(base, Policy(net=("elsewhere.example:80",)))
    assert blueprint != compiled(base, Policy(loopback=True))


@pytest.mark.parametrize(("abi", "own"), [(5, True), (6, False)])
def test_before_landlock_knows_scopes_each_child_has_a_network_of_its_own(abi, own, base):
    root, foundation = base
    blueprint = compiled((root, foundation._replace(landlock_abi=abi)))

    assert own == only(blueprint, wire.Namespaces).network


def test_writable_places_are_opened_by_the_ruleset_and_staged_ones_by_the_blueprint(base):
    root, _foundation = base
    blueprint = compiled(
        base, policy_of(root, {"": {"read"}, "a": {"write"}, "d": {"write_through"}, "top": {"write"}})
    )
    a, d, top = (str(root / name) for name in ("a", "d", "top"))

    assert wire.Landlock(True, wire.OWN_ROOT, ("/tmp", a, d, top), (top,), False, 0) == only(blueprint, wire.Landlock)
    assert {(a, True), (top, False)} == {(stage.path, stage.folder) for stage in blueprint.stages}
    layers = {step.path: step.layer for step in whole(blueprint) if isinstance(step, wire.Attach)}
    assert all(layers[stage.path] == stage.layer for stage in blueprint.stages)
    assert (True, "box") == (blueprint.bound, blueprint.box)


def test_owners_matter_only_where_root_shows_files_as_the_operations_own(base):
    root, _foundation = base
    policy = policy_of(root, {"": {"read"}, "a": {"read"}})
    owner = os.stat(root)

    assert () == compiled(base, policy).owners
    assert ((owner.st_uid, owner.st_gid),) == compiled(base, policy, who=replace(USER, privileged=True)).owners


def test_hidden_names_go_along_as_masks(base, tmp_path):
    root, foundation = base
    (tmp_path / ".env").write_text("")
    for mode in RANK:
        blueprint = compiled((root, foundation), Policy(**{mode: (str(tmp_path),)}))

        assert ((".env", None),) == only(blueprint, wire.Attach).masks


def test_without_a_cgroup_memory_and_pids_are_held_by_rlimits(base):
    limits = Limits(memory=100 * MiB, cpu_s=1.5, pids=500, disk=MiB)
    free, held = (
        only(compiled(base, limits=limits), wire.Rlimits),
        only(compiled(base, limits=limits, cgroup=True), wire.Rlimits),
    )

    assert (32, 500) == (dict(free.values)[resource.RLIMIT_NPROC], dict(held.values)[resource.RLIMIT_NPROC])
    assert (100 * MiB, 0) == (free.address_space, held.address_space)
    assert (3, MiB, 1) == tuple(
        dict(free.values)[kind] for kind in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)
    )


def test_a_path_that_has_vanished_is_not_granted(base, tmp_path):
    with pytest.raises(NotGranted, match=r"gone: No such file or directory") as caught:
        compiled(base, Policy(read=(str(tmp_path / "gone"),)))

    assert "grant its real path" == caught.value.hint


def test_a_path_through_a_link_is_not_granted(base, tmp_path):
    (tmp_path / "link").symlink_to(base[0])

    for path in ("link", "link/a"):
        with pytest.raises(NotGranted, match="Too many levels of symbolic links"):
            compiled(base, Policy(read=(str(tmp_path / path),)))


def test_sockets_and_fifos_are_not_granted(base, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("sock")

        for name in ("fifo", "sock"):
            with pytest.raises(NotGranted, match=f"{name} is neither a file nor a folder"):
                compiled(base, Policy(read=(str(tmp_path / name),)))


def test_more_paths_than_layers_are_not_granted(base, tmp_path):
    paths = []
    for number in range(wire.LAYERS_MAX + 1):
        (tmp_path / str(number)).mkdir()
        paths.append(str(tmp_path / str(number)))

    with pytest.raises(NotGranted, match="65 granted paths, at most 64"):
        compiled(base, Policy(read=tuple(paths)))
    assert 64 == sum(isinstance(step, wire.Attach) for step in compiled(base, Policy(read=tuple(paths[1:]))).steps)


def test_no_descriptor_is_left_open(base):
    policy = policy_of(base[0], {path: {"read"} for path in PATHS})
    compiled(base, policy)
    before = os.listdir("/proc/self/fd")
    compiled(base, policy)

    assert before == os.listdir("/proc/self/fd")


# Who we are.


class FirstNamespace(io.StringIO):
    def __init__(self, *_args, **_kwargs):
        super().__init__("         0          0 4294967295\n")


@pytest.fixture
def as_root(monkeypatch):
    """The host's root, with these capabilities."""

    def become(capabilities, namespace=FirstNamespace):
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(steps, "open", namespace, raising=False)
        monkeypatch.setattr(syscalls, "capabilities", lambda: (capabilities, 0, 0))

    return become


def test_root_gives_its_identity_up_for_one_of_this_process_alone(as_root):
    as_root((1 << 41) - 1)
    number = steps.UID_BASE + os.getpid()

    assert steps.Identity(number, number, privileged=True) == steps.identity()
    assert 65534 < number < 1 << 31


@pytest.mark.parametrize(
    ("bit", "name"), [(21, "SYS_ADMIN"), (7, "SETUID"), (6, "SETGID"), (0, "CHOWN"), (1, "DAC_OVERRIDE")]
)
def test_root_without_a_capability_is_told_which(bit, name, as_root):
    as_root(((1 << 41) - 1) & ~(1 << bit))

    with pytest.raises(SandboxUnavailable, match=f"running as root without CAP_{name}") as caught:
        steps.identity()
    assert f"--cap-add {name}" in caught.value.hint


def test_root_of_a_user_namespace_stays_who_it_is(as_root):
    as_root(0, lambda *_args, **_kwargs: io.StringIO("0 1000 1"))

    assert steps.Identity(0, os.getegid(), privileged=False) == steps.identity()


def test_an_ordinary_user_stays_who_it_is(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4711)

    assert steps.Identity(4711, os.getegid(), privileged=False) == steps.identity()


# The foundation.


def test_nothing_of_the_host_is_bound_but_the_system_and_the_interpreter(tmp_path):
    foundation = steps.foundation(USER, str(tmp_path))
    folders = {
        source for source, _path, folder in foundation.binds if folder and not source.startswith(("/etc/", "/usr"))
    }

    assert folders <= {f"/{name}" for name in SYSTEM_FOLDERS} | {os.path.realpath(sys.base_prefix)}
    assert ("/usr", "/usr", True) in foundation.binds
    assert not {"/etc/shadow", "/etc/passwd", "/etc/resolv.conf"} & {
        source for source, _path, _folder in foundation.binds
    }


def test_etc_is_ours_where_it_names_people_and_hosts(tmp_path):
    files = dict(steps.foundation(USER, str(tmp_path)).files)

    assert b"sage:x:1000:1000:" in files["/etc/passwd"]
    assert b"hosts: files\n" in files["/etc/nsswitch.conf"]
    ours = {"/etc/passwd", "/etc/group", "/etc/hosts", "/etc/hostname", "/etc/nsswitch.conf"}
    assert ours == {path for path in files if path.startswith("/etc/")}


def test_the_program_that_calls_tools_is_there_and_runs_in_the_operations_interpreter(tmp_path):
    foundation = steps.foundation(USER, str(tmp_path))
    program = dict(foundation.files)["/sandbox/bin/sage-tool"]
    first, rest = program.split(b"\n", 1)
    interpreter = dict(foundation.links)[first.removeprefix(b"#!").split()[0].decode()]

    assert os.path.realpath(sys.executable) == interpreter
    assert Path(tools.__file__).read_bytes() == rest
    assert {"_socket", "json", "struct", "sys", "typing", "__future__"} >= imported(rest)


def imported(source):
    """What a module imports; what it names for a type checker only is left out."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names} | {
        node.module for node in nodes if isinstance(node, ast.ImportFrom)
    }


def test_the_program_is_there_in_a_root_with_grants_too(tmp_path):
    foundation = steps.foundation(USER, str(tmp_path))

    assert wire.PROGRAMS in steps._own_root(foundation).mounts


def test_the_socket_for_calls_lies_in_the_work_folder():
    assert os.path.dirname(tools.SOCKET) == wire.BOX


def test_root_of_a_user_namespace_is_root_inside_too(tmp_path):
    files = dict(steps.foundation(replace(USER, uid=0), str(tmp_path)).files)

    assert f"root:x:0:0:root:{wire.BOX}:/bin/sh\n".encode() == files["/etc/passwd"]


@pytest.mark.parametrize("project", ["/", "/usr", "/tmp"])
def test_the_project_has_a_place_unless_tmp_is_over_it(project):
    assert (() if project == "/tmp" else (project,)) == steps.foundation(USER, project).folders


def test_packages_are_bound_and_searched(tmp_path):
    bind = (str(tmp_path), "/packages/x", True)
    foundation = steps.foundation(USER, str(tmp_path), (bind,))
    blueprint = steps.compile_steps(
        Policy(read=(str(tmp_path),)), Limits(), USER, foundation, project="/", masker=Masker(), cgroup=False
    )

    assert ("/packages",) == foundation.packages
    assert bind in foundation.binds
    assert "/packages" in only(blueprint, wire.OwnRoot).mounts
    assert "/packages/x" not in only(blueprint, wire.OwnRoot).mounts
    assert "packages" in only(blueprint, wire.Pivot).entries


def test_an_interpreter_elsewhere_is_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))

    assert (str(tmp_path), str(tmp_path), True) in steps.foundation(USER, "/").binds


def test_system_folders_are_links_or_binds_as_on_the_host(monkeypatch):
    kinds = {"/bin": "link", "/lib": "folder"}
    monkeypatch.setattr(os.path, "islink", lambda path: kinds.get(path) == "link")
    monkeypatch.setattr(os.path, "isdir", lambda path: kinds.get(path) == "folder")
    monkeypatch.setattr(os, "readlink", lambda path: "usr" + path)

    assert ([("/bin", "usr/bin")], [("/usr", "/usr", True), ("/lib", "/lib", True)]) == steps._system_folders()


def test_etc_links_into_usr_stay_links(monkeypatch):
    links = {"/etc/localtime": "/usr/share/zoneinfo/UTC", "/etc/mime.types": "/elsewhere/mime.types"}
    monkeypatch.setattr(os.path, "islink", links.__contains__)
    monkeypatch.setattr(os.path, "realpath", lambda path: links.get(path, path))
    monkeypatch.setattr(os.path, "exists", links.__contains__)
    monkeypatch.setattr(os.path, "isdir", lambda _path: False)

    assert (
        [("/etc/localtime", "/usr/share/zoneinfo/UTC")],
        [("/elsewhere/mime.types", "/etc/mime.types", False)],
    ) == steps._etc()


def test_only_a_cgroup_allows_memfds():
    assert steps._programs(memfd=True) != steps._programs(memfd=False)
    assert steps._programs(memfd=True) is steps._programs(memfd=True)


def test_the_projects_owner_is_the_foundations(tmp_path):
    assert (os.stat(tmp_path).st_uid, os.stat(tmp_path).st_gid) == steps.foundation(USER, str(tmp_path)).owner
