"""What `run` and `resume` share."""

from __future__ import annotations

import gc
import os

import pytest
from commands import loaded_by
from saved_runs import THREE

from sage_sandbox.cli.main import main
from sage_sandbox.cli.running import reported
from sage_sandbox.errors import UsageError
from sage_sandbox.runner import Runner


@pytest.fixture(autouse=True)
def own_threshold():
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_nothing_is_looked_through_for_rubbish_while_a_run_is_prepared():
    assert not reported(None, False, gc.isenabled)
    assert gc.isenabled()


def test_what_is_rubbish_is_found_again_after_a_refusal(capsys):
    def refuse():
        raise UsageError("no")

    with pytest.raises(UsageError):
        reported("f", True, refuse)

    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_while_a_run_goes_on_rubbish_is_found(world, monkeypatch):
    seen = []
    run = Runner.run

    def look(self):
        seen.append(gc.isenabled())
        return run(self)

    monkeypatch.setattr(Runner, "run", look)
    world.write(THREE)

    assert main(["run", "t.yaml"]) == 0
    assert [True] == seen


def test_no_plug_in_of_pydantics_is_looked_for(monkeypatch):
    monkeypatch.delenv("PYDANTIC_DISABLE_PLUGINS", raising=False)
    reported(None, False, lambda: 0)

    assert os.environ["PYDANTIC_DISABLE_PLUGINS"] == "__all__"


def test_what_brings_up_a_broker_is_loaded_by_runs_that_need_one():
    assert "sage_sandbox.brokering" not in loaded_by("import sage_sandbox.api")
