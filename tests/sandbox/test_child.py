"""The steps of a child, each in a process that is thrown away: all hold, or the first that does not ends it."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="arg-type,assignment,var-annotated"

from __future__ import annotations

import errno
import json
import os
import resource
import socket

import pytest
from sandbox import standin
from sandbox.standin import CALL, climbed, compiled, inherit, whole

from sage_sandbox.errors import ExitCode, SandboxUnavailable
from sage_sandbox.policy import Policy
from sage_sandbox.sandbox.inside import child, programs, wire
from sage_sandbox.sandbox.inside import syscalls as sc
from sage_sandbox.sandbox.inside.foundation import lay_foundation
from sage_sandbox.sandbox.job import Job

pytestmark = pytest.mark.usefixtures("_namespaces")

FOUNDATION = wire.Foundation((), (), (), (), (), (0, 0), 0, 0, False, (b"", b""), 0, ())

# For each step, one kernel call that it cannot do without, and what the kernel answers.
REFUSALS = {
    "Namespaces": (sc, "unshare", errno.EPERM),
    "Listen": (wire, "send_descriptor", errno.EPERM),
    "Work": (sc, "mount", errno.EPERM),
    "OwnRoot": (sc, "mount", errno.EPERM),
    "Place": (sc, "move_mount", errno.EPERM),
    "Attach": (sc, "open_tree", errno.EPERM),
    "Proc": (sc, "mount", errno.ENOMEM),  # EPERM is the named exception: then there is no /proc, and it is said
    "Pivot": (sc, "pivot_root", errno.EPERM),
    "Landlock": (sc, "landlock_create_ruleset", errno.EPERM),
    "Identity": (sc, "unshare", errno.EPERM),
    "Descriptors": (os, "closerange", errno.EPERM),
    "Defaults": (os, "umask", errno.EPERM),
    "Rlimits": (resource, "setrlimit", errno.EPERM),
    "Powerless": (sc, "set_capabilities", errno.EPERM),
    "Restrict": (sc, "landlock_restrict_self", errno.EPERM),
    "Seccomp": (sc, "seccomp_filter", errno.EPERM),
    "SelfCheck": (sc, "capabilities", errno.EPERM),
}


class NoGate:
    """A way out that nobody takes."""

    def open(self, listener, granted):
        raise AssertionError

    def shut(self):
        return ()

    def close(self):
        pass


@pytest.fixture
def refuse(monkeypatch):
    """Have the kernel refuse one call during one step. Returns the kinds of step that were tried, in order."""

    def arrange(kind):
        tried = []
        module, name, code = REFUSALS[kind]
        real = getattr(module, name)

        def call(*args, **kwargs):
            if tried and tried[-1] == kind:
                raise OSError(code, f"{name}: {os.strerror(code)}")
            return real(*args, **kwargs)

        class Watched(child.Ascent):
            def __init__(self, *args):
                super().__init__(*args)
                self._apply = {step: self._noting(step, apply) for step, apply in self._apply.items()}

            def _noting(self, step, apply):
                def noted(value):
                    tried.append(step.__name__)
                    apply(value)

                return noted

        monkeypatch.setattr(child, "Ascent", Watched)
        monkeypatch.setattr(module, name, call)
        return tried

    return arrange


def test_every_kind_of_step_has_a_refusal_here():
    assert set(wire.STEPS) == set(REFUSALS)


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refused_step_is_reported_and_nothing_after_it_is_tried(kind, refuse, in_child, who, project):
    blueprint = compiled(who, project, Policy(read=(str(project),), net=("example.org:443",), loopback=True))

    def act():
        inherited = inherit(who, project)
        ours, theirs = standin.pair()
        ours.sendall(wire.pack(*whole(blueprint)) + wire.pack(CALL))
        tried = refuse(kind)
        child.main(theirs, inherited)
        kept = (wire.LISTENER, wire.WORK_FOLDER)
        return tried, [frame for frame in standin.frames(ours) if frame[0] not in kept]

    tried, sent = in_child(act)
    kinds = [type(step).__name__ for step in whole(blueprint)]
    ((frame, body),) = sent

    assert kinds[: kinds.index(kind) + 1] == tried
    assert wire.REFUSED == frame
    assert [kind, REFUSALS[kind][2]] == json.loads(body)[:2]


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refused_step_means_that_no_sandbox_can_be_had(kind, refuse, forked_zygotes, supervisor):
    refuse(kind)
    supervisor._make_gate = NoGate
    job = Job(
        "python",
        code="def run():\n    return 1\n",
        project=supervisor.project,
        policy=Policy(read=(supervisor.project,), net=("example.org:443",)),
    )

    with pytest.raises(SandboxUnavailable, match=f"step {kind}: ") as caught:
        supervisor.run(job)

    assert ExitCode.SANDBOX_UNAVAILABLE == caught.value.exit_code
    assert kind == caught.value.feature
    assert "sage-sandbox doctor" == caught.value.hint
    assert 1 == len(forked_zygotes)


def test_a_hard_limit_below_ours_is_kept(in_child, who, project):
    # CIS benchmarks ask for `* hard core 0`: RLIMIT_CORE can then not be set to 1.
    blueprint = compiled(who, project)

    def act():
        inherited = inherit(who, project)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        climbed(inherited, whole(blueprint))
        return resource.getrlimit(resource.RLIMIT_CORE)

    assert (0, 0) == in_child(act)


def look():
    """What the kernel says of this process, for the far side."""
    return {
        "effective": sc.capabilities(),
        "bounding": [number for number in range(41) if sc.prctl(sc.PR_CAPBSET_READ, number)],
        "securebits": sc.prctl(sc.PR_GET_SECUREBITS),
        "no_new_privs": sc.prctl(sc.PR_GET_NO_NEW_PRIVS),
        "seccomp": sc.prctl(sc.PR_GET_SECCOMP),
        "dumpable": sc.prctl(sc.PR_GET_DUMPABLE),
        "umask": os.umask(0),
        "session": os.getsid(0) == os.getpid(),
        "closed": child.no_foreign_descriptor(),
        "ids": (os.getresuid(), os.getresgid()),
        "limits": {
            kind: resource.getrlimit(kind)
            for kind in (resource.RLIMIT_CORE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE)
        },
        "address_space": resource.getrlimit(resource.RLIMIT_AS)[0],
        "cwd": os.getcwd(),
        "root": sorted(os.listdir("/")),
    }


@pytest.mark.parametrize("granted", [False, True])
def test_every_step_applied_leaves_what_it_says(granted, in_child, who, project):
    policy = Policy(read=(str(project),), net=("example.org:443",), loopback=True) if granted else Policy()
    blueprint = compiled(who, project, policy, disk=1 << 20, pids=7)

    def act():
        ascent = climbed(inherit(who, project), whole(blueprint))
        return look(), ascent.capabilities

    seen, capabilities = in_child(act)

    assert (0, 0, 0) == seen["effective"]
    assert [] == seen["bounding"]
    assert sc.SECURE_ALL == seen["securebits"]
    assert 1 == seen["no_new_privs"]
    assert sc.SECCOMP_MODE_FILTER == seen["seccomp"]
    assert 0 == seen["dumpable"]
    assert 0o077 == seen["umask"]
    assert seen["session"]
    assert seen["closed"]
    assert ((who.uid,) * 3, (who.gid,) * 3) == seen["ids"]
    assert {
        resource.RLIMIT_CORE: (1, 1),
        resource.RLIMIT_NPROC: (7, 7),
        resource.RLIMIT_FSIZE: (1 << 20, 1 << 20),
    } == seen["limits"]
    assert seen["address_space"] > 256 << 20
    assert seen["cwd"].endswith(str(project))  # without grants /tmp is a link into the box
    assert {"usr", "dev", "etc", "proc", "sandbox", "tmp"} <= set(seen["root"])
    assert not {"home", "root", "sys", "var", "run", "host", "new", "own", "work", "layers"} & set(seen["root"])
    assert capabilities in ({"proc": True}, {"proc": False})


def test_with_a_net_grant_the_port_of_the_proxy_is_all_that_is_connected_to(in_child, who, project):
    blueprint = compiled(who, project, Policy(net=("example.org:443",)))

    def act():
        inherited = inherit(who, project)
        ours, theirs = standin.pair()
        child.Ascent(inherited, theirs).climb(whole(blueprint))
        data, fds, _flags, _address = socket.recv_fds(socket.socket(fileno=os.dup(ours.fileno())), 5, 1)
        listener = socket.socket(fileno=fds[0])
        with socket.create_connection(("127.0.0.1", 3128)) as made:
            listener.accept()[0].sendall(b"there")
            heard = made.recv(10)
        try:
            socket.create_connection(("127.0.0.1", 3129))
        except OSError as error:
            return data[4:], heard, listener.getsockname(), error.errno
        return None

    told, heard, place, refusal = in_child(act)

    assert (wire.LISTENER, b"there", ("127.0.0.1", 3128)) == (told, heard, place)
    assert (errno.EACCES if sc.landlock_abi() >= 4 else errno.ECONNREFUSED) == refusal


def test_a_child_says_ready_then_runs_its_one_request(in_child, who, project):
    blueprint = compiled(who, project)

    def act():
        inherited = inherit(who, project)
        ours, theirs = standin.pair()
        ours.sendall(wire.pack(*whole(blueprint)) + wire.pack(CALL))
        child.main(theirs, inherited)
        return standin.frames(ours)

    (work, _), (ready, capabilities), value = in_child(act)

    assert (wire.WORK_FOLDER, wire.READY) == (work, ready)
    assert ["proc"] == list(json.loads(capabilities))
    assert (wire.VALUE, b'"ran"') == value


def test_a_request_that_needs_more_memory_than_there_is_is_an_outcome(in_child, who, project):
    blueprint = compiled(who, project)

    def refuse(_body):
        raise MemoryError

    def act():
        inherited = inherit(who, project)
        ours, theirs = standin.pair()
        ours.sendall(wire.pack(*blueprint.ahead) + wire.pack(*blueprint.steps) + wire.pack(CALL))
        programs.rehearse = lambda: None
        wire.unpack_request = refuse
        child.main(theirs, inherited)
        return standin.frames(ours)[-1]

    assert (wire.ERROR, b'{"type": "MemoryError"}') == in_child(act)


def without(plan, *kinds):
    return tuple(step for step in plan if not isinstance(step, kinds))


def not_confined(who, project, blueprint, act):
    """A process in which one claim of the self-check does not hold: the sentence that it is refused with."""

    def confine():
        try:
            act(who, project, whole(blueprint))
            child.check_confined()
        except OSError as error:
            return error.strerror
        return None

    return confine


def _privileges_can_be_gained(who, project, _plan):
    foundation = standin.found(who, project)
    standin.enter(privileged=who.privileged)
    lay_foundation(foundation, os.open("/proc", os.O_PATH))


def _capabilities_are_left(who, project, plan):
    _privileges_can_be_gained(who, project, plan)
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)


def _no_filter_is_in_force(who, project, plan):
    _capabilities_are_left(who, project, plan)
    sc.set_capabilities(0, 0, 0)


def _it_is_dumpable(who, project, plan):
    keep = sc.set_dumpable
    sc.set_dumpable = lambda _dumpable: keep(True)
    climbed(inherit(who, project), without(plan, wire.SelfCheck))


def _a_descriptor_is_left(who, project, plan):
    climbed(inherit(who, project), without(plan, wire.SelfCheck))
    os.dup(1)


def _mount_is_allowed(who, project, plan):
    # Nothing but a forged answer: a process without capabilities has no way to unmount.
    climbed(inherit(who, project), without(plan, wire.SelfCheck))
    sc.umount2 = lambda _target, _flags: None


def _mount_fails_for_another_reason(who, project, plan):
    # EINVAL from what a filter should have refused: it got as far as the kernel's own code.
    climbed(inherit(who, project), without(plan, wire.SelfCheck))

    def fail(_target, _flags):
        raise OSError(errno.EINVAL, "umount2")

    sc.umount2 = fail


def _user_namespaces_can_be_made(who, project, plan):
    climbed(inherit(who, project), without(plan, wire.Seccomp, wire.SelfCheck))


@pytest.mark.parametrize(
    ("claim", "act"),
    [
        ("no new privileges", _privileges_can_be_gained),
        ("no capability", _capabilities_are_left),
        ("seccomp filter", _no_filter_is_in_force),
        ("not dumpable", _it_is_dumpable),
        ("no foreign descriptor", _a_descriptor_is_left),
        ("mount is refused", _mount_is_allowed),
        ("mount is refused", _mount_fails_for_another_reason),
        ("no new user namespace", _user_namespaces_can_be_made),
    ],
)
def test_self_check_refuses_a_process_in_which(claim, act, in_child, who, project):
    refused = in_child(not_confined(who, project, compiled(who, project), act))

    assert f"self-check: {claim} does not hold" == refused


def test_self_check_accepts_a_process_in_which_every_claim_holds(in_child, who, project):
    plan = whole(compiled(who, project))

    def act():
        climbed(inherit(who, project), without(plan, wire.SelfCheck))
        return child.check_confined()

    assert in_child(act) is None


@pytest.mark.parametrize(("number", "seen"), [(child.RESULT_FD, False), (4, True), (9, True), (67, True)])
def test_a_descriptor_above_the_result_is_foreign(number, seen, in_child):
    def act():
        os.closerange(4, 1 << 20)
        os.dup2(1, number)
        return not child.no_foreign_descriptor()

    assert seen == in_child(act)


def test_a_ruleset_that_lies_where_it_belongs_stays_there(in_child):
    def act():
        ascent = child.Ascent(child.Inheritance(-1, -1, child.RULESET_FD, {}, FOUNDATION), None)
        ascent._landlock(wire.Landlock(own=False, root="", writable=(), files=(), network=False, port=0))
        return True

    assert in_child(act)
