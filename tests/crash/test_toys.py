"""What the harness is worth: a program that does it right passes at every call, each way to get it wrong is caught."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from crash import order, powercut, toy
from crash.harness import Command, Harness, Plan, plans_for

PYTHON = (sys.executable, "-I", "-S")


class Toy:
    """The toy program in a folder of its own; what it acknowledged is kept elsewhere."""

    def __init__(self, harness: Harness, variant: str, folder: Path, elsewhere: Path) -> None:
        self.folder = folder
        self.acknowledged = elsewhere / "acknowledged"
        self.harness = replace(harness, watched=(folder,))
        argv = [*PYTHON, toy.__file__, variant, folder, self.acknowledged]
        self.command = Command(argv, elsewhere, {"PATH": os.defpath})  # type: ignore[arg-type]
        self.recover = self.settle = lambda: None

    def calls(self):
        """What it does when nothing comes between."""
        self.start_anew()
        result = self.harness.run(self.command, trace=True)
        assert 0 == result.code, result.stderr
        return result.calls

    def problems_after(self, plan: Plan) -> list[str]:
        """What is wrong after a crash, and after it was started again."""
        self.start_anew()
        result = self.harness.run(self.command, plan)
        assert result.fired in {"crashed", "fired"}
        self.recover()
        found = toy.problems(self.folder, self.acknowledged)
        again = self.harness.run(self.command)
        found += [f"it does not go on: {again.stderr}"] if again.code else []
        found += toy.problems(self.folder, self.acknowledged)
        return found + [f"{path.name} is left" for path in self.folder.glob("*.tmp")]

    def start_anew(self) -> None:
        """Nothing is there yet."""
        self.acknowledged.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.settle()


def every(plans, nth: int):
    """Every nth of some plans: all kinds of calls, as their number is no multiple of it."""
    return list(plans)[::nth]


@pytest.fixture
def make_toy(harness, tmp_path, watched):
    return lambda variant: Toy(harness, variant, watched, tmp_path)


def test_a_toy_that_does_it_right_survives_every_plan(make_toy):
    right = make_toy("right")
    plans = every(plans_for(right.calls(), ("kill", "fail", "short")), 3)
    failed = {str(plan): found for plan in plans if (found := right.problems_after(plan))}

    assert {} == failed
    assert {"kill", "fail", "short"} == {plan.verb for plan in plans}


@pytest.mark.parametrize("variant", ["in-place", "acknowledged-first"])
def test_a_toy_that_gets_it_wrong_is_caught_by_a_kill(make_toy, variant):
    wrong = make_toy(variant)

    assert any(wrong.problems_after(plan) for plan in plans_for(wrong.calls(), ("kill",)))


def test_a_toy_that_does_it_right_has_its_calls_in_order(make_toy):
    assert [] == order.problems(make_toy("right").calls())


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("folder-not-synced", "before the fsync of the name"),
        ("file-not-synced", "before the fsync of the bytes"),
        ("in-place", "writes under a final name"),
    ],
)
def test_a_toy_that_gets_it_wrong_is_caught_by_its_order(make_toy, variant, said):
    found = order.problems(make_toy(variant).calls())

    assert found
    assert all(said in problem for problem in found)


# -- without power -------------------------------------------------------------------------------------------------


def on_disk(harness, tmp_path, kind, variant, act):
    """Do something with a toy that works on a file system whose power can be cut."""
    if reason := powercut.missing(kind):
        pytest.skip(reason)

    def with_toy(disk):
        made = Toy(replace(harness, mount=disk.mount), variant, disk.mount / "toy", tmp_path)
        made.recover, made.settle = disk.replay, disk.sync
        return act(made)

    return powercut.with_disk(kind, tmp_path, with_toy)


@pytest.mark.parametrize("kind", powercut.KINDS)
def test_a_toy_that_does_it_right_survives_a_power_cut(harness, tmp_path, kind):
    def act(right):
        plans = every(plans_for(right.calls(), ("cut",)), 5)
        return {str(plan): found for plan in plans if (found := right.problems_after(plan))}

    assert {} == on_disk(harness, tmp_path, kind, "right", act)


@pytest.mark.parametrize("variant", ["folder-not-synced", "file-not-synced", "acknowledged-first"])
@pytest.mark.parametrize("kind", powercut.KINDS)
def test_a_toy_that_gets_it_wrong_is_caught_by_a_power_cut(harness, tmp_path, kind, variant):
    def act(wrong):
        return any(wrong.problems_after(plan) for plan in plans_for(wrong.calls(), ("cut",)))

    assert on_disk(harness, tmp_path, kind, variant, act)


@pytest.mark.parametrize("kind", powercut.KINDS)
def test_what_was_synced_survives_a_power_cut_and_nothing_else_does(tmp_path, kind):
    """The cut is a cut: without it, all tests above would prove nothing."""
    if reason := powercut.missing(kind):
        pytest.skip(reason)

    def act(disk):
        synced, written = disk.mount / "synced", disk.mount / "written"
        with synced.open("wb") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        written.write_bytes(b"x")
        powercut.cut(disk.mount)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (disk.mount / "late").write_bytes(b"x")
        disk.replay()
        return {path.name: path.read_bytes() for path in disk.mount.iterdir() if path.is_file()}

    left = powercut.with_disk(kind, tmp_path, act)

    assert b"x" == left["synced"]
    assert b"x" != left.get("written")
    assert [] == list(tmp_path.glob("*.image"))
