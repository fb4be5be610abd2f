"""The supervisor over real zygotes: which child serves an operation, and what becomes of it when the zygote dies."""

# What is faked, patched and misused here on purpose is the subject.
# mypy: disable-error-code="func-returns-value,redundant-expr"

from __future__ import annotations

import os
import signal

import pytest

from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.policy import Limits, MiB, Policy
from sage_sandbox.sandbox import cgroup, steps
from sage_sandbox.sandbox import supervisor as module
from sage_sandbox.sandbox.inside import wire
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.nursery import Child, ChildGone, Zygote
from sage_sandbox.sandbox.watch import Watch

ONE = "def run(): return 1\n"


@pytest.fixture
def call(supervisor):
    def run(code=ONE, **more):
        return supervisor.run(Job("python", code=code, project=supervisor.project, **more))

    return run


@pytest.fixture
def without_cgroups(monkeypatch):
    monkeypatch.setattr(cgroup, "find", lambda: None)


@pytest.fixture
def started(monkeypatch):
    """Every zygote that is started."""
    made = []
    plain = Zygote.__init__

    def init(self, *args):
        made.append(self)
        plain(self, *args)

    monkeypatch.setattr(Zygote, "__init__", init)
    return made


def kill(zygote):
    os.killpg(zygote._process.pid, signal.SIGKILL)
    zygote._process.wait()


def test_a_prepared_spare_serves_the_first_operation(supervisor, call):
    supervisor.prepare()
    spare = supervisor._spare
    supervisor.prepare()

    assert spare is supervisor._spare
    assert call().ok
    assert spare.serial == 1
    assert spare.gone is not None


def test_each_operation_has_a_child_of_its_own(call):
    code = "import sys\ndef run():\n    seen = hasattr(sys, 'mark')\n    sys.mark = 1\n    return seen\n"

    assert [False, False, False] == [call(code).value() for _ in range(3)]


def test_a_spare_for_other_limits_is_buried(supervisor, call, started):
    supervisor.prepare()
    spare = supervisor._spare

    assert call(limits=Limits(memory=100 * MiB)).ok
    assert spare.gone is not None
    assert -1 == spare.pidfd
    assert 1 == len(started)


def test_a_half_open_spare_is_confined_for_the_operation_that_comes(supervisor, call):
    policy = Policy(read=(supervisor.project,))
    first = call("def run(): return open('notes.txt').read()\n", policy=policy)
    spare = supervisor._spare
    second = call("def run(): return open('notes.txt').read()\n", policy=policy)

    assert "of the project" == first.value() == second.value()
    assert spare.whole
    assert spare.gone is not None


def test_a_half_open_spare_does_not_serve_an_operation_without_grants(supervisor, call):
    call(policy=Policy(read=(supervisor.project,)))
    spare = supervisor._spare
    seen = call("import os\ndef run(): return os.listdir('.')\n")

    assert [] == seen.value()
    assert not spare.whole


def test_a_worn_zygote_is_replaced(supervisor, call, started, monkeypatch):
    monkeypatch.setattr(module, "ZYGOTE_OPERATIONS", 1)

    assert all(call().ok for _ in range(3))
    assert len(started) > 1


def test_an_old_zygote_is_replaced(supervisor, call, started, monkeypatch):
    call()
    monkeypatch.setattr(module, "ZYGOTE_AGE_S", 0.0)
    call()

    assert 2 == len(started)
    assert started[0]._process.returncode is not None


def test_a_zygote_that_died_between_operations_is_replaced_unseen(call, started):
    call()
    kill(started[0])

    assert call().ok
    assert 2 == len(started)


def test_a_zygote_that_dies_every_time_means_that_no_sandbox_can_be_had(call, monkeypatch):
    def gone(_self, _child):
        raise ChildGone

    monkeypatch.setattr(Zygote, "wait_born", gone)

    with pytest.raises(SandboxUnavailable, match="the sandbox's zygote died"):
        call()


def test_a_zygote_that_dies_under_an_operation_loses_it_and_not_the_next(call, monkeypatch):
    call()
    plain = Watch.until_gone

    def until_gone(self, zygote, *more):
        kill(zygote)
        plain(self, zygote, *more)

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "until_gone", until_gone)
        lost = call("import time\ndef run(): time.sleep(100)\n")

    assert ("rejected", "worker lost") == (lost.status, lost.reason)
    assert call().ok


def test_burying_over_a_dead_zygote_drops_it(supervisor, monkeypatch):
    def gone(_self, _child):
        raise ChildGone

    supervisor.prepare()
    monkeypatch.setattr(Zygote, "wait_gone", gone)
    supervisor._bury(supervisor._spare)

    assert supervisor._zygote is None


def test_dropping_what_was_never_started_does_nothing(supervisor):
    supervisor._drop_zygote()

    assert supervisor._zygote is None


def test_a_refused_step_drops_the_zygote(supervisor, call, monkeypatch):
    def refuse(_self):
        raise SandboxUnavailable("no", "", "Pivot")

    monkeypatch.setattr(Child, "wait_ready", refuse)

    with pytest.raises(SandboxUnavailable, match="no"):
        call()
    assert supervisor._zygote is None


def test_a_cgroup_that_is_required_and_cannot_be_had_is_refused(without_cgroups, call):
    with pytest.raises(SandboxUnavailable, match="memory=cgroup is required, and no cgroup can be written") as caught:
        call(require_cgroup=True)

    assert "cgroup" == caught.value.feature
    assert "sampled" == call().capabilities.memory


def test_a_cgroup_that_is_required_and_can_be_had_counts(supervisor, call):
    supervisor.prepare()
    if supervisor._home is None:
        pytest.skip("no cgroup with memory and pids can be made here")

    assert "cgroup" == call(require_cgroup=True).capabilities.memory


def test_the_same_cgroups_serve_one_operation_after_the_other(supervisor, call, monkeypatch):
    supervisor.prepare()
    if supervisor._home is None:
        pytest.skip("no cgroup with memory and pids can be made here")
    names = []
    plain = supervisor._home.make
    monkeypatch.setattr(supervisor._home, "make", lambda name: names.append(name) or plain(name))
    for _ in range(5):
        call()

    assert len(names) <= 2


def test_less_memory_than_a_sandbox_takes_is_rejected(supervisor, call):
    outcome = call(limits=Limits(memory=module.MEMORY_LEAST - 1))

    assert ("rejected", "limit") == (outcome.status, outcome.reason)
    assert "a sandbox takes 16 MiB" in outcome.error
    assert "--limit memory=16M" == outcome.hint
    assert supervisor._zygote is None


def test_a_grant_that_vanished_is_denied(supervisor, call, tmp_path):
    outcome = call(policy=Policy(read=(str(tmp_path / "gone"),)))

    assert ("rejected", "denied") == (outcome.status, outcome.reason)
    assert "grant its real path" == outcome.hint


def test_a_grant_that_changes_while_the_child_is_confined_is_denied(supervisor, call, monkeypatch):
    # The first look is before the steps are sent, the second within them.
    plain = steps.compile_steps

    def compile_steps(*args, **more):
        blueprint = plain(*args, **more)
        os.rename(f"{supervisor.project}/notes.txt", f"{supervisor.project}/moved")
        return blueprint

    monkeypatch.setattr(steps, "compile_steps", compile_steps)
    supervisor._zygote_for(())
    outcome = call(policy=Policy(read=(f"{supervisor.project}/notes.txt",)))

    assert ("rejected", "denied", "run it again") == (outcome.status, outcome.reason, outcome.hint)
    assert "a granted path changed" in outcome.error


@pytest.mark.skipif(os.geteuid() != 0, reason="files of another owner: root only")
def test_files_of_other_owners_are_read_as_the_operations_own(supervisor, call, tmp_path):
    secrets = []
    for owner in (1000, 1001):
        path = tmp_path / f"secret{owner}"
        path.write_text(f"of {owner}")
        path.chmod(0o600)
        os.chown(path, owner, owner)
        secrets.append(str(path))
    supervisor.prepare()
    spare = supervisor._spare
    outcome = call(f"def run(): return [open(p).read() for p in {secrets!r}]\n", policy=Policy(read=tuple(secrets)))

    assert ["of 1000", "of 1001"] == outcome.value()
    assert spare.gone is not None
    assert {(1000, 1000), (1001, 1001)} <= supervisor._zygote.mapped_owners


def test_closing_leaves_no_process_and_may_be_done_twice(supervisor, call, started):
    call()
    supervisor.close()
    supervisor.close()

    assert started[0]._process.returncode is not None
    assert supervisor._spare is None


def test_a_command_reads_its_parameters_unless_told_otherwise(supervisor):
    job = Job("command", argv=("cat",), params=b'{"a": 1}', project=supervisor.project)

    assert '{"a": 1}' == supervisor.run(job).value()
    assert "given" == supervisor.run(job, stdin=b"given").value()


def test_the_first_frame_is_the_last_word(call):
    code = f"""import os, struct
def run():
    body = {wire.VALUE!r} + b'"forged"'
    os.write(3, struct.pack('>I', len(body)) + body)
    return "real"
"""

    assert "forged" == call(code).value()
