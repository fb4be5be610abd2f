"""doctor: the table, the machine form and the exit code."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner
from commands import run_cli

from sage_sandbox.cli import doctor
from sage_sandbox.errors import SandboxUnavailable
from sage_sandbox.sandbox import probe
from sage_sandbox.sandbox.probe import Feature

HERE = Feature("own kitchen", True, "dinner", "version 2", "", needed=True)
GONE = Feature(
    "pidfd", False, "the right process is killed", "Function not implemented", "Linux 5.3 or later", needed=True
)
OPTIONAL = Feature("overlay", False, "staged writes", "No such \x1b[31mdevice", "", needed=False)
FULL = Feature("level full", True, "operations run", "in 1.0 ms", "", needed=True)
NOT_FULL = Feature("level full", False, "operations run", "needs pidfd", "Linux 5.3 or later", needed=True)


def run(monkeypatch, *features, args=()):
    """The verb with these findings; exit code and output."""
    monkeypatch.setattr(probe, "probe", lambda: features)
    done = CliRunner().invoke(doctor.command, args, standalone_mode=False)
    return done.return_value, done.output


def test_the_table_is_aligned_and_marks_what_is_missing(monkeypatch):
    code, output = run(monkeypatch, HERE, GONE, OPTIONAL, NOT_FULL)

    assert code == 14
    assert (
        "✓ own kitchen  dinner                       version 2\n"
        "✗ pidfd        the right process is killed  Function not implemented\n"
        "– overlay      staged writes                No such \\x1b[31mdevice\n"
        "✗ level full   operations run               needs pidfd\n"
        "\n"
        "how to get more:\n"
        "  pidfd        Linux 5.3 or later\n"
        "  level full   Linux 5.3 or later\n"
    ) == output


def test_with_everything_here_nothing_is_advised(monkeypatch):
    code, output = run(monkeypatch, HERE, FULL)

    assert code == 0
    assert "how to get more" not in output


def test_the_machine_form_has_the_same_facts(monkeypatch):
    code, output = run(monkeypatch, GONE, NOT_FULL, args=["--json"])
    document = json.loads(output)

    assert (14, "none") == (code, document["level"])
    assert {
        "name": "pidfd",
        "here": False,
        "gives": "the right process is killed",
        "detail": "Function not implemented",
        "how": "Linux 5.3 or later",
        "needed": True,
    } == document["features"][0]


def test_elsewhere_than_on_linux_it_says_so(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")

    with pytest.raises(SandboxUnavailable, match="darwin"):
        doctor.probed()


def test_on_this_machine_the_exit_code_tells_whether_level_full_can_be_had():
    done = run_cli("doctor", "--json")
    document = json.loads(done.stdout)

    assert done.stderr == ""
    assert {"full": 0, "none": 14}[document["level"]] == done.returncode
    assert document["features"][-1]["name"] == "level full"
