"""The official conformance suite (`@modelcontextprotocol/conformance`), run by `tox -e conformance`."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
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
FIXTURE_FREE = {
    "2026-07-28": (
        "server-stateless",
        "tools-list",
        "resources-list",
        "prompts-list",
        "sep-2164-resource-not-found",
        "caching",
        "dns-rebinding-protection",
        "input-required-result-unsupported-methods",
        "http-header-validation",
        "completion-complete",
        "server-sse-multiple-streams",
    ),
    "2025-11-25": (
        "server-initialize",
        "ping",
        "tools-list",
        "resources-list",
        "prompts-list",
        "completion-complete",
        "server-sse-multiple-streams",
        "dns-rebinding-protection",
        "server-session-lifecycle",
    ),
}

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def suite():
    return program("conformance")


@contextmanager
def started(home, *args, lines=1):
    """The first lines that a program of ours says; it is ended with its standard input, or by a signal."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *args],
        cwd=home,
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(HERE.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield [process.stdout.readline().strip() for _ in range(lines)]
    finally:
        if args[0] == "sage_sandbox":
            process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def app(suite, tmp_path_factory):
    """The address of our server with the suite's fixtures added."""
    with started(tmp_path_factory.mktemp("app"), "conformance.app") as (url,):
        yield url


@pytest.fixture(scope="module")
def shipped(suite, tmp_path_factory):
    """The address of the server as it is shipped; a relay sends its token along."""
    home = tmp_path_factory.mktemp("shipped")
    serve = ("sage_sandbox", "serve", "--http", "127.0.0.1:0")
    with started(home, *serve, lines=2) as said, started(home, "conformance.relay", *said) as (url,):
        yield url


def judge(suite, url, folder, *args, known="expected-failures.yml"):
    judged = run([*suite, "server", "--url", url, *args, "--expected-failures", str(HERE / known)], folder)

    assert 0 == judged.returncode, judged.stdout[-8000:] + judged.stderr[-2000:]


@pytest.mark.parametrize("revision", ["2026-07-28", "2025-11-25"])
def test_what_a_revision_requires_is_there(suite, app, tmp_path, revision):
    judge(suite, app, tmp_path, "--requirements", revision)


@pytest.mark.parametrize("scenario", TASKS)
def test_tasks_are_as_the_extension_says(suite, app, tmp_path, scenario):
    judge(suite, app, tmp_path, "--scenario", scenario)


@pytest.mark.parametrize(("revision", "scenario"), [(of, one) for of, all_ in FIXTURE_FREE.items() for one in all_])
def test_shipped_server_passes_what_needs_no_fixture(suite, shipped, tmp_path, revision, scenario):
    known = "expected-failures-shipped.yml" if scenario == "server-stateless" else "expected-failures.yml"
    judge(suite, shipped, tmp_path, "--scenario", scenario, "--spec-version", revision, known=known)


def test_no_scenario_of_tasks_is_left_out(suite, tmp_path):
    listed = run([*suite, "list", "--server"], tmp_path).stdout

    assert set(TASKS) == {word for word in listed.split() if word.startswith("tasks-")}
