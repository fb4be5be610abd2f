"""A project whose runs are saved, and whose sandboxes are faked."""

from __future__ import annotations

from functools import partial

import pytest
from saved_runs import THREE, Pretender, World

from sage_sandbox import api
from sage_sandbox.dispatch.dispatcher import Dispatcher, inline_pool


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The working directory, with a template of three phases in it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    made = World(folder)
    made.write(THREE)

    def warm(project, *, parallel=4, slots=1, environ=None):
        make = partial(Pretender, world=made)
        dispatcher = Dispatcher(project, parallel=parallel, make_pool=inline_pool, make_supervisor=make)
        dispatcher.grow(slots)
        return dispatcher

    monkeypatch.setattr(api, "warm", warm)
    return made


class Killed(BaseException):
    """What ends a process at once, as far as that can be had without one."""


@pytest.fixture
def killed_at(monkeypatch):
    """Have the process die when it is about to commit a phase: nothing is written down after that."""
    from sage_sandbox.journal import Journal

    def arm(phase):
        commit = Journal.commit

        def die(self, results):
            if any(result.id == phase for result in results):
                monkeypatch.setattr(Journal, "commit", commit)
                raise Killed
            return commit(self, results)

        monkeypatch.setattr(Journal, "commit", die)
        return pytest.raises(Killed)

    return arm
