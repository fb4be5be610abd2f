"""What an operation is told about its way out, and what of that it took."""

from __future__ import annotations

import os
import signal

import pytest

from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.outcome import Contact, Violation
from sage_sandbox.policy import Policy
from sage_sandbox.sandbox.job import Job
from sage_sandbox.sandbox.outside import environment, violations

NET = Policy(net=("example.org:443",))
ALLOWED = Contact("example.org", 443, "allowed", times=1, sent=2, received=3)
TELL = "import os, json\ndef run():\n    return dict(os.environ)\n"


class Gate:
    """A way out that only says what happened to it."""

    def __init__(self):
        self.said = []
        self.refuse = None

    def open(self, listener, granted):
        self.said.append(("open", listener >= 0, tuple(granted)))
        if self.refuse:
            raise self.refuse

    def shut(self):
        self.said.append("shut")
        return (ALLOWED,)

    def close(self):
        self.said.append("close")


@pytest.fixture
def gate(supervisor):
    made = Gate()
    supervisor._make_gate = lambda: made
    return made


def test_nothing_is_told_without_a_host():
    assert () == environment(Policy(loopback=True))


def test_the_proxy_is_named_in_every_spelling():
    told = dict(environment(NET))

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        assert "http://127.0.0.1:3128" == told[name]
    assert ("", "", "1") == (told["no_proxy"], told["NO_PROXY"], told["NODE_USE_ENV_PROXY"])
    git = [(told[f"GIT_CONFIG_KEY_{n}"], told[f"GIT_CONFIG_VALUE_{n}"]) for n in range(int(told["GIT_CONFIG_COUNT"]))]
    assert [("safe.directory", "*"), ("protocol.ssh.allow", "never"), ("protocol.git.allow", "never")] == git


def test_an_own_loopback_is_not_proxied_to_unless_the_hosts_is_granted():
    own = Policy(net=("example.org:443",), loopback=True)
    both = Policy(net=("127.0.0.1:80", "[::1]:80"), loopback=True)

    assert "localhost,127.0.0.1,::1" == dict(environment(own))["no_proxy"]
    assert "localhost" == dict(environment(both))["NO_PROXY"]


def test_what_was_refused_is_a_violation_once():
    refused = Contact("a.example", 80, "refused", "not granted", "net:a.example:80", times=2)
    contacts = (
        ALLOWED,
        refused,
        Contact("a.example", 80, "failed", "no answer"),
        Contact("", 0, "refused", "no request: x"),
        refused,
    )

    assert (
        Violation("tried to reach a.example:80: not granted", "net:a.example:80"),
        Violation("no request: x"),
    ) == violations(contacts)


def test_a_gate_is_open_while_the_operation_runs(supervisor, gate):
    job = Job("python", code=TELL, project=supervisor.project, policy=NET, env=(("http_proxy", "http://elsewhere"),))
    first, second = supervisor.run(job), supervisor.run(job)

    assert (ALLOWED,) == first.contacts == second.contacts
    assert "http://127.0.0.1:3128" == first.value()["http_proxy"]
    assert [("open", True, NET.net), "shut"] * 2 == gate.said
    supervisor.close()
    assert "close" == gate.said[-1]


def test_a_gate_stays_shut_for_others(supervisor, gate):
    outcome = supervisor.run(Job("python", code=TELL, project=supervisor.project, policy=Policy(loopback=True)))

    assert () == outcome.contacts
    assert "http_proxy" not in outcome.value()
    assert [] == gate.said


def test_a_spare_with_a_listener_serves_the_next_that_needs_one(supervisor, gate):
    job = Job("python", code=TELL, project=supervisor.project, policy=NET)
    supervisor.run(job)
    spare = supervisor._spare
    supervisor.run(job)

    assert spare is not None
    assert spare.whole
    assert spare.gone is not None
    assert -1 == spare.listener


def test_without_a_gate_nothing_that_needs_one_is_run(supervisor):
    with pytest.raises(SandboxUnavailable, match="there is no proxy") as caught:
        supervisor.run(Job("python", code=TELL, project=supervisor.project, policy=NET))

    assert "egress proxy" == caught.value.feature


def test_a_gate_that_cannot_be_had_ends_the_child(supervisor, gate):
    gate.refuse = SandboxUnavailable("no proxy", "", "egress proxy")
    with pytest.raises(SandboxUnavailable, match="no proxy"):
        supervisor.run(Job("python", code=TELL, project=supervisor.project, policy=NET))
    gate.refuse = None

    assert supervisor.run(Job("python", code=TELL, project=supervisor.project, policy=NET)).ok


def test_what_a_lost_operation_turned_to_is_known(supervisor, gate):
    def kill(listener, granted):
        os.killpg(supervisor._zygote._process.pid, signal.SIGKILL)
        supervisor._zygote._process.wait()

    gate.open = kill
    lost = supervisor.run(
        Job("python", code="import time\ndef run(): time.sleep(60)\n", project=supervisor.project, policy=NET)
    )

    assert ("worker lost", (ALLOWED,)) == (lost.reason, lost.contacts)
