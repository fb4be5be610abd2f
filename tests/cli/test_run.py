"""`run`: what it takes, what it prints where, and how it ends. Sandboxes are faked; the last tests use real ones."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from textwrap import dedent

import pytest
from commands import cli_argv, run_cli
from saved_runs import fail, hang

from sage_sandbox import api
from sage_sandbox.cli.main import main
from sage_sandbox.disk.files import sage_folder
from sage_sandbox.disk.locking import acquire
from sage_sandbox.dispatch.dispatcher import Dispatcher, inline_pool
from sage_sandbox.errors import ExitCode, UsageError
from sage_sandbox.outcome import Outcome, rejected
from sage_sandbox.sandbox.job import Job
from sage_sandbox.store import active
from sage_sandbox.store.layout import lock_name


class Scripted:
    """A supervisor that confines nothing and runs nothing: the code of an operation says how it ends."""

    def __init__(self, project: str, slot: int, jobs: list[Job]) -> None:
        self.jobs = jobs

    def prepare(self) -> None:
        pass

    def run(self, job: Job, *, cancel_fd: int = -1) -> Outcome:
        self.jobs.append(job)
        if "fail" in job.code:
            return rejected("error", "it was told to", "tell it something else")
        return Outcome("fulfilled", result=job.params, level="full")

    def close(self) -> None:
        pass


@pytest.fixture
def jobs(monkeypatch):
    """The jobs that operations would have been confined for."""
    seen: list[Job] = []

    def warm(project, *, parallel=4, slots=1, environ=None):
        make = partial(Scripted, jobs=seen)
        dispatcher = Dispatcher(project, parallel=parallel, make_pool=inline_pool, make_supervisor=make)
        dispatcher.grow(slots)
        return dispatcher

    monkeypatch.setattr(api, "warm", warm)
    return seen


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def template(project):
    """Write a template whose phases are given as YAML."""

    def write(phases: str, head: str = "", name: str = "Try It") -> str:
        path = project / "t.yaml"
        path.write_text(f"name: {name}\n{dedent(head)}\nphases:\n{dedent(phases)}", encoding="utf-8")
        return str(path)

    return write


ONE = """
- id: only
  name: Only
  operations: {type: python, code: "def run(): pass", params: {answer: 42}}
"""
THREE = """
- id: all
  name: All
  operations:
    - {id: a, type: python, code: "def run(): pass"}
    - {id: b, type: python, code: "def run(): fail"}
    - {id: c, type: python, code: "def run(): fail"}
"""


def test_results_go_to_stdout_and_progress_to_stderr(jobs, template, capsys):
    assert main(["run", template(ONE)]) == ExitCode.DONE

    out, err = capsys.readouterr()
    assert '✓ only: completed\n    op-1: {"answer": 42}\n' == out
    assert "▸ Try It (1 phase, 1 operation)" == err.splitlines()[0]
    assert err.splitlines()[-1].startswith("✓ Workflow complete (")


def test_json_is_exactly_one_document_on_stdout(jobs, template, capsys):
    assert main(["run", template(ONE), "mine", "--json"]) == ExitCode.DONE

    document = json.loads(capsys.readouterr().out)
    assert (True, "mine", "completed") == (document["success"], document["feature"], document["status"])
    (operation,) = document["results"]["phases"][0]["operations"]
    assert ("op-1", "fulfilled", {"answer": 42}, None) == tuple(
        operation[field] for field in ("id", "status", "result", "error")
    )
    assert {"durationMs", "maxRssBytes", "cpuMs", "sandboxLevel", "attempts"} <= operation.keys()


def test_a_failed_single_operation_exits_1_and_says_why(jobs, template, capsys):
    failing = ONE.replace("pass", "fail")

    assert main(["run", template(failing)]) == ExitCode.FAILED

    out, err = capsys.readouterr()
    assert "op-1: error: it was told to (hint: tell it something else)" in out
    assert "✗ only/op-1 it was told to" in err


def test_a_phase_below_its_threshold_pauses_with_exit_3(jobs, template, capsys):
    assert main(["run", template(THREE), "--json"]) == ExitCode.PAUSED

    document = json.loads(capsys.readouterr().out)
    assert ("paused", 3) == (document["status"], document["exitCode"])
    assert 2 == len([error for error in document["errors"] if error["operation"]])


@pytest.mark.parametrize("feature", ["../up", "Up", "a/b", "-a", "a" * 65, "ü"])
def test_a_feature_that_is_no_name_is_refused_before_any_path_is_built(jobs, template, project, capsys, feature):
    assert main(["run", template(ONE), "--", feature]) == ExitCode.USAGE

    assert "feature name" in capsys.readouterr().err
    assert [project / "t.yaml"] == list(project.iterdir())
    assert [] == jobs


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("Try It", "try-it"),
        ("Größe & Maß", "groe-ma"),
        ("日本", "workflow"),
        ("-x-", "x"),
        ("a" * 63 + " bc", "a" * 63),
    ],
)
def test_the_feature_defaults_to_a_slug_of_the_name(name, feature):
    api.check_feature(feature)

    assert feature == api.slug(name)


def test_parameters_reach_the_operation_with_their_types(jobs, template):
    phases = ONE.replace("{answer: 42}", '{top: "${params.top}"}')
    head = "parameters: {top: {type: integer, default: 10}}"

    assert main(["run", template(phases, head), "--param", "top=20"]) == ExitCode.DONE

    assert {"top": 20} == json.loads(jobs[0].params)


@pytest.mark.parametrize("param", ["top", "=1", ""])
def test_a_parameter_without_a_value_is_a_usage_error(jobs, template, capsys, param):
    assert main(["run", template(ONE), "--param", param]) == ExitCode.USAGE

    assert "NAME=VALUE" in capsys.readouterr().err


def test_what_nobody_granted_is_refused_with_a_list_of_what_to_add(jobs, template, project, capsys):
    (project / "src").mkdir()
    asking = ONE.replace("params:", "policy: {read: [src]}, params:")

    assert main(["run", template(asking), "--json"]) == ExitCode.NOT_GRANTED

    out, err = capsys.readouterr()
    assert "--allow read:src" in err
    assert 15 == json.loads(out)["exitCode"]
    assert [] == jobs


def test_a_grant_reaches_the_operation_as_a_real_path(jobs, template, project):
    (project / "src").mkdir()
    asking = ONE.replace("params:", "policy: {read: [src]}, params:")

    assert main(["run", template(asking), "--allow", "read:src"]) == ExitCode.DONE

    assert (os.path.realpath(project / "src"),) == jobs[0].policy.read


def test_a_granted_host_reaches_the_operation(jobs, template):
    asking = ONE.replace("params:", "policy: {net: ['API.example.org:443']}, params:")
    assert main(["run", template(asking)]) == ExitCode.NOT_GRANTED
    assert main(["run", template(asking), "--allow", "net:*.example.org:443"]) == ExitCode.DONE

    assert ("api.example.org:443",) == jobs[0].policy.net


def test_a_limit_reaches_the_operation(jobs, template):
    assert main(["run", template(ONE), "--limit", "memory=1M", "--limit", "cpu=2s"]) == ExitCode.DONE

    assert (1 << 20, 2.0) == (jobs[0].limits.memory, jobs[0].limits.cpu_s)


@pytest.mark.parametrize(
    "option",
    [
        ("--allow", "fly:high"),
        ("--limit", "wings=2"),
        ("--timeout", "soon"),
        ("--parallel", "0"),
        ("--require", "luck"),
    ],
)
def test_an_option_that_cannot_be_meant_is_a_usage_error(jobs, template, capsys, option):
    assert main(["run", template(ONE), *option]) == ExitCode.USAGE

    assert capsys.readouterr().err.startswith("✗ ")
    assert [] == jobs


def test_what_the_user_should_know_is_said_before_the_run(jobs, template, capsys, monkeypatch):
    prepare = api.prepare
    monkeypatch.setattr(
        api, "prepare", lambda *args, **kw: replace(prepare(*args, **kw), notices=("not\x1bremembered",))
    )

    assert main(["run", template(ONE)]) == ExitCode.DONE

    assert "⚠ not\\x1bremembered\n" == capsys.readouterr().err.splitlines(keepends=True)[0]


def test_a_required_cgroup_reaches_the_operation(jobs, template):
    assert main(["run", template(ONE), "--require", "memory=cgroup"]) == ExitCode.DONE

    assert jobs[0].require_cgroup


def test_an_invalid_template_shows_every_problem_and_runs_nothing(jobs, template, capsys):
    assert main(["run", template("- {id: A, name: '', operations: []}"), "--json"]) == ExitCode.USAGE

    out, err = capsys.readouterr()
    assert len(json.loads(out)["errors"]) >= 3
    assert err.count("t.yaml:") >= 3
    assert [] == jobs


def test_a_missing_template_is_a_usage_error(jobs, project, capsys):
    assert main(["run", "nowhere.yaml"]) == ExitCode.USAGE

    assert "nowhere.yaml" in capsys.readouterr().err


def test_a_template_is_found_by_name_in_the_project(jobs, template, project):
    folder = project / ".sage" / "templates"
    folder.mkdir(parents=True)
    Path(template(ONE)).rename(folder / "weekly.yaml")

    assert main(["run", "weekly"]) == ExitCode.DONE


@pytest.mark.parametrize("place", [".sage", ".sage/artifacts", ".sage/artifacts/try-it"])
def test_artifacts_never_follow_a_link_that_the_project_brought(jobs, template, project, tmp_path, place):
    (tmp_path / "elsewhere").mkdir()
    (project / place).parent.mkdir(parents=True, exist_ok=True)
    (project / place).symlink_to(tmp_path / "elsewhere")

    assert main(["run", template(ONE)]) == ExitCode.USAGE

    assert [] == jobs


def test_foreign_text_reaches_the_terminal_escaped(jobs, template, capsys):
    evil = ONE.replace("{answer: 42}", r'{"\x1b[2J\u202e": "\x07"}')

    assert main(["run", template(evil)]) == ExitCode.DONE

    out, err = capsys.readouterr()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", out + err)


def test_the_library_runs_a_template_and_returns_its_result(jobs, template):
    import sage_sandbox as sage

    result = sage.run(template(ONE, "parameters: {top: {type: array}}"), params={"top": [1]}, limits=["memory=1M"])

    assert {"answer": 42} == result.outcome("only", "op-1").value()
    assert (True, "try-it") == (result.ok, result.feature)


def test_the_library_refuses_what_it_cannot_mean(jobs, template):
    with pytest.raises(UsageError, match="required"):
        api.run(template(ONE), require=["luck"])
    with pytest.raises(UsageError, match="timeout"):
        api.run(template(ONE), timeout="soon")


# --- what is saved


def test_a_run_leaves_its_state_and_says_nothing_of_it(world, capsys):
    assert world.run() == ExitCode.DONE

    assert {
        "ACTIVE_WORKFLOWS.json",
        "workflow-f.json",
        "workflow-f.json.bak",
        "workflow-f/_definition.1.json",
        "workflow-f/a.1.json",
        "workflow-f/b.1.json",
        "workflow-f/c.1.json",
    } == set(world.tree())
    assert {"workflows": []} == json.loads(world.state("ACTIVE_WORKFLOWS.json").read_text())
    assert "sav" not in capsys.readouterr().err


def test_nothing_that_is_saved_can_be_read_without_the_key(world):
    world.acts["a/op-1"] = lambda _job, _fd: Outcome("fulfilled", result=b'"plain to see"')
    world.run()

    assert not [name for name, data in world.tree().items() if b"plain to see" in data or b"def run" in data]


def test_files_of_the_state_are_the_users_alone(world):
    world.run()
    files, folders = 0o600, 0o700

    modes = {path: path.stat().st_mode & 0o777 for path in (world.project / ".sage").rglob("*")}

    assert {} == {path: mode for path, mode in modes.items() if mode != (folders if path.is_dir() else files)}


def test_without_encryption_state_is_readable_and_holds_no_granted_secret(world, monkeypatch, capsys):
    monkeypatch.setenv("SAGE_STATE_ENCRYPTION", "false")
    monkeypatch.setenv("WEATHER", "cloudy, with 3 showers")
    world.write({"a": {"op_fields": {"policy": {"env": ["WEATHER"]}}}})
    world.acts["a/op-1"] = lambda job, _fd: Outcome(
        "fulfilled", result=json.dumps(dict(job.env)["WEATHER"]).encode(), stderr=dict(job.env)["WEATHER"].encode()
    )

    assert world.run("--allow", "env:WEATHER") == ExitCode.DONE

    checkpoint = json.loads(world.state("workflow-f", "a.1.json").read_text())["payload"]
    assert ("a", "completed", {"op-1": "[secret:known]"}) == tuple(
        checkpoint[name] for name in ("phaseId", "status", "results")
    )
    files = [path for path in (world.project / ".sage").rglob("*") if path.is_file()]
    out, err = capsys.readouterr()
    assert not [path for path in files if b"cloudy" in path.read_bytes()]
    assert "cloudy" not in out + err


def test_a_checkpoint_says_when_its_phase_started(world, monkeypatch):
    monkeypatch.setenv("SAGE_STATE_ENCRYPTION", "false")
    world.write({"a": {"fields": {"timeout": 300}}})
    world.acts["a/op-1"] = hang
    world.run()

    record = json.loads(world.state("workflow-f", "a.1.json").read_text())["payload"]
    began, ended = (datetime.fromisoformat(record[name]) for name in ("timestamp", "completedAt"))

    assert record["metrics"]["duration"] == pytest.approx((ended - began) / timedelta(milliseconds=1), abs=2)
    assert record["metrics"]["duration"] >= 300


def test_an_unfinished_feature_is_not_run_over(world, capsys):
    world.acts["b/y"] = fail
    world.run()
    before = world.tree()
    capsys.readouterr()

    assert world.run() == ExitCode.USAGE

    assert [
        "✗ f is paused: 1 of 3 phases are done",
        "hint: go on with: sage-sandbox resume f; or start anew with --restart",
    ] == capsys.readouterr().err.splitlines()
    assert ([], before) == (world.ran, world.tree())


def test_restart_puts_aside_what_there_was_and_starts_anew(world, capsys):
    world.acts["b/y"] = fail
    world.run("--json")
    first = json.loads(capsys.readouterr().out)["workflowId"]
    before = world.tree()
    world.acts.clear()

    assert world.run("--restart", "--json") == ExitCode.DONE

    assert first != json.loads(capsys.readouterr().out)["workflowId"]
    assert 4 == len(world.ran)
    assert {f"aside/f.1/{name}": data for name, data in before.items() if "ACTIVE" not in name}.items() <= (
        world.tree().items()
    )


def test_restart_starts_anew_over_what_cannot_be_read(world, monkeypatch):
    world.acts["b/y"] = fail
    world.run()
    world.acts.clear()
    monkeypatch.setenv("SAGE_STATE_KEY", "11" * 32)

    assert world.run() == ExitCode.WRONG_KEY
    assert world.run("--restart") == ExitCode.DONE


def test_a_completed_feature_is_run_anew(world):
    world.run()

    assert world.run() == ExitCode.DONE

    assert 4 == len(world.ran)


def test_features_do_not_know_each_other(world):
    world.acts["b/y"] = fail
    world.run()

    assert world.main("run", "t.yaml", "g") == ExitCode.PAUSED
    assert 3 == len(world.ran)


def test_without_state_nothing_is_saved_and_that_is_said(world, capsys):
    world.acts["c/op-1"] = fail

    assert world.run("--no-state") == ExitCode.FAILED

    err = capsys.readouterr().err
    assert "⚠ nothing is saved: this run cannot be resumed" == err.splitlines()[0]
    assert err.endswith("· nothing was saved\n")
    assert not (world.project / ".sage").exists()


def test_no_state_does_not_go_with_detach(world, capsys):
    assert world.run("--no-state", "--detach") == ExitCode.USAGE

    assert "--detach needs state" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [("run", "t.yaml", "f"), ("run", "t.yaml", "f", "--restart"), ("resume", "f")])
def test_a_feature_that_is_being_run_is_refused_with_who_does_and_what_else_runs(world, capsys, verb):
    world.acts["c/op-1"] = fail
    world.run()
    before = world.tree()
    with sage_folder(world.project, "state") as folder, ExitStack() as locks:
        for feature in ("f", "g"):
            locks.enter_context(acquire(folder, lock_name(feature), wait_s=0, who=feature))
            active.announce(folder, feature, {"template": feature.upper(), "startedAt": "2030-01-01T00:00:00Z"})
        capsys.readouterr()

        assert world.main(*verb) == ExitCode.LOCKED

    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith(f"✗ f is being run already: another process runs this (f, pid {os.getpid()} since 2")
    assert hint.endswith("; running here: f (F, since 2030-01-01T00:00:00Z), g (G, since 2030-01-01T00:00:00Z)")
    assert [] == world.ran
    changed = {name for name, data in world.tree().items() if before.get(name) != data}
    assert {"ACTIVE_WORKFLOWS.json"} == changed


def test_a_run_is_on_the_list_while_it_runs(world):
    listed = []
    world.acts["b/x"] = lambda job, fd: (
        listed.append(json.loads(world.state("ACTIVE_WORKFLOWS.json").read_text())),  # type: ignore[func-returns-value]
        fail(job, fd),
    )[1]
    world.run()

    ((entry,),) = [item["workflows"] for item in listed]
    assert ("f", "Steps", os.getpid()) == (entry["feature"], entry["template"], entry["pid"])


# --- real sandboxes


def test_a_run_in_real_sandboxes_returns_what_the_code_returned(template, project):
    adding = ONE.replace("def run(): pass", "def run(params): return params['answer'] + 1")

    done = run_cli("run", template(adding), "--json", cwd=project)

    assert 0 == done.returncode, done.stderr
    (operation,) = json.loads(done.stdout)["results"]["phases"][0]["operations"]
    assert (43, "full") == (operation["result"], operation["sandboxLevel"])
    assert "Traceback" not in done.stderr


def answered_on_a_terminal(argv, cwd, prompt_end, answer):
    """Run something on a terminal of its own and answer its question: what it had said, and its exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(argv, cwd=cwd, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    modes = termios.tcgetattr(theirs)
    modes[3] &= ~termios.ECHO  # or our own answer would look like a reaction
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    os.close(theirs)
    question = b""
    with suppress(OSError):  # EIO: nobody has the other end any more
        while not question.endswith(prompt_end):
            question += os.read(ours, 1024)

    # What is typed before the process waits for it is thrown away, so it is typed until there is a reaction.
    while not select.select([ours], [], [], 0.2)[0]:
        os.write(ours, f"{answer}\n".encode())
    with suppress(OSError):
        while os.read(ours, 1024):
            pass
    process.communicate()
    watchdog.cancel()
    os.close(ours)
    return question.decode(), process.returncode


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 15), ("", 15)])
def test_on_a_terminal_the_user_is_asked_for_what_is_missing(template, project, answer, code):
    (project / "src").mkdir()
    asking = ONE.replace("params:", "policy: {read: [src]}, params:")

    question, ended = answered_on_a_terminal(cli_argv("run", template(asking)), project, b"[n] ", answer)

    assert "read:src" in question
    assert code == ended


@pytest.fixture
def read_only(project):
    """How to run something that cannot write into the project."""
    if os.geteuid():
        (project / ".sage").mkdir(mode=0o500)
        yield lambda argv: argv
        (project / ".sage").chmod(0o700)
        return
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && exec "$@"'
    wrap = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(project)]
    if subprocess.run([*wrap, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this kernel lets nobody mount here")
    yield lambda argv: [*wrap, *argv]


def test_where_state_cannot_be_written_a_run_is_refused_and_no_state_runs_it(template, project, read_only):
    path = template(ONE)

    def run(*options):
        argv = read_only(cli_argv("run", path, "f", *options))
        return subprocess.run(
            argv, cwd=project, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )

    refused = run()
    assert 1 == refused.returncode
    assert f"✗ state cannot be written: {project}/.sage" in refused.stderr
    assert "hint: `--no-state` runs without it; such a run cannot be resumed" in refused.stderr.splitlines()

    done = run("--no-state")
    assert (0, "⚠ nothing is saved: this run cannot be resumed") == (done.returncode, done.stderr.splitlines()[0])
    assert not (project / ".sage" / "state").exists()


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_on_a_terminal_the_user_is_asked_whether_to_run_without_state(template, project, read_only, answer, code):
    argv = read_only(cli_argv("run", template(ONE), "f"))

    question, ended = answered_on_a_terminal(argv, project, b"[y/N]: ", answer)

    assert "run without saving? it cannot be resumed then" in question
    assert code == ended


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_soon_and_leaves_no_process(template, project, number):
    sleeping = ONE.replace("def run(): pass", "import time\\ndef run(): time.sleep(600)")
    argv = cli_argv("run", template(sleeping), "--json")
    inherited = signal.signal(number, signal.SIG_DFL)  # below nohup(1) SIGHUP is ignored, and stays so
    process = subprocess.Popen(
        argv, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    signal.signal(number, inherited)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    assert process.stderr is not None
    assert "1 operation" in process.stderr.readline()

    process.send_signal(number)
    out, err = process.communicate()
    watchdog.cancel()

    assert (130, "cancelled") == (process.returncode, json.loads(out)["status"]), err
    assert [] == _left_in_session(process.pid)


def _left_in_session(session, patience_s=2.0):
    """What still runs; loky's trackers end when they notice that we are gone."""
    deadline = time.monotonic() + patience_s
    while (left := _in_session(session)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def _in_session(session):
    """The processes of a session, those aside that have ended and wait for their parent (init) to notice."""
    stats = [_read(path) for path in Path("/proc").glob("[0-9]*/stat")]
    fields = [(stat, stat.rpartition(")")[2].split()) for stat in stats if stat]
    return [stat for stat, after in fields if after[0] != "Z" and after[3] == str(session)]


def _read(path):
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
