"""Limits and signals of one process, set in one that is thrown away."""

from __future__ import annotations

import os
import resource
import signal

import pytest

from sage_sandbox.sandbox.inside import rlimits


def test_soft_and_hard_limit_become_the_value(in_child):
    def act():
        rlimits.apply(((resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_FSIZE, 4096)), 0, 0)
        return [
            resource.getrlimit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS)
        ]

    before = resource.getrlimit(resource.RLIMIT_AS)

    assert [(64, 64), (4096, 4096), before] == in_child(act)


def test_the_address_space_counts_above_what_is_mapped(in_child):
    def act():
        rlimits.apply((), 64 << 20, 512 << 20)
        return resource.getrlimit(resource.RLIMIT_AS)

    assert ((576 << 20) + rlimits.SLACK,) * 2 == in_child(act)


def test_more_than_the_address_space_cannot_be_allocated(in_child):
    proc = os.open("/proc", os.O_PATH)

    def act():
        rlimits.apply((), 16 << 20, rlimits.mapped_bytes(proc))
        bytearray(256 << 20)

    with pytest.raises(MemoryError):
        in_child(act)
    os.close(proc)


def test_mapped_bytes_grow_with_a_mapping(in_child):
    proc = os.open("/proc", os.O_PATH)

    def act():
        before = rlimits.mapped_bytes(proc)
        kept = bytearray(64 << 20)
        return rlimits.mapped_bytes(proc) - before, len(kept)

    grown, _ = in_child(act)
    os.close(proc)

    assert 64 << 20 <= grown < 80 << 20


def test_every_signal_gets_its_default_and_none_is_blocked(in_child):
    def act():
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGHUP})
        rlimits.default_signals()
        handlers = {signal.getsignal(number) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}}
        return handlers, signal.pthread_sigmask(signal.SIG_BLOCK, ())

    assert ({signal.SIG_DFL}, set()) == in_child(act)


def test_a_lower_hard_limit_stays(in_child):
    def act():
        rlimits.default_signals()
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        rlimits.apply(((resource.RLIMIT_NOFILE, 1024),), 0, 0)
        return resource.getrlimit(resource.RLIMIT_NOFILE)

    assert (64, 64) == in_child(act)
