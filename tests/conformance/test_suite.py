"""The official conformance suite (`@modelcontextprotocol/conformance`), run by `tox -e conformance`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conformance.installed import program, run

HERE = Path(__file__).parent
TASKS = (
    "tasks-lifecycle",
    "tasks-capability-negotiation",
    "tasks-wire-fields",
    "tasks-request-state-removal",
    "tasks-mrtr-input",
    "tasks-request-headers",
    "tasks-dispatch-and-envelope",
    "tasks-status-notifications",  # nothing is checked yet: the suite says so and skips itself
    "tasks-required-task-error",
    "tasks-mrtr-composition",
)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def suite():
    return program("conformance")


@pytest.fixture(scope="module")
def app(suite, tmp_path_factory):
    """The address of our server with the suite's fixtures added."""
    home = tmp_path_factory.mktemp("app")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "conformance.app"],
        cwd=home,
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(HERE.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate(timeout=30)  # its standard input ends, and it with that
        assert 0 == process.returncode


def judge(suite, url, folder, *args):
    judged = run(
        [*suite, "server", "--url", url, *args, "--expected-failures", str(HERE / "expected-failures.yml")], folder
    )

    assert 0 == judged.returncode, judged.stdout[-8000:] + judged.stderr[-2000:]
    return judged.stdout


@pytest.mark.parametrize("revision", ["2026-07-28", "2025-11-25"])
def test_what_a_revision_requires_is_there(suite, app, tmp_path, revision):
    said = judge(suite, app, tmp_path, "--requirements", revision)

    assert said


@pytest.mark.parametrize("scenario", TASKS)
def test_tasks_are_as_the_extension_says(suite, app, tmp_path, scenario):
    judge(suite, app, tmp_path, "--scenario", scenario)


def test_no_scenario_of_tasks_is_left_out(suite, tmp_path):
    listed = run([*suite, "list", "--server"], tmp_path).stdout

    assert set(TASKS) == {word for word in listed.split() if word.startswith("tasks-")}
