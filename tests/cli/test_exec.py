"""`exec`: one command in a real sandbox, its streams passed on, its exit code returned."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import termios
from textwrap import dedent

import pytest
from commands import cli_argv, run_cli

from sage_sandbox.cli import terminal
from sage_sandbox.cli.main import main

TEMPLATE = """
name: like
parameters: {word: {type: string, default: hello}}
phases:
  - id: look
    name: Look
    operations:
      - id: shout
        type: python
        params: {word: "${params.word}"}
        policy: {read: [data]}
        limits: {memory: 64M}
        code: |
          def run(params):
              return {"word": params["word"].upper(), "data": open("data/a").read()}
      - id: list
        type: command
        argv: [ls, data]
        policy: {read: [data]}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a").write_text("kept")
    (tmp_path / "t.yaml").write_text(dedent(TEMPLATE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--", "sh", "-c", "exit 3"], 3, ""),
        (["--", "sh", "-c", "kill -SEGV $$"], 128 + 11, ""),
        (["--", "nosuch"], 127, "✗ nosuch: command not found"),
        (["--timeout", "300ms", "--", "sleep", "30"], 124, "✗ timeout 300 ms exceeded"),
        (["--limit", "cpu=1s", "--", "sh", "-c", "while :; do :; done"], 137, "✗ cpu limit 1 s exceeded"),
        (["--limit", "memory=1M", "--", "true"], 137, "a sandbox takes 16 MiB\nhint: --limit memory=16M"),
        (["--allow", "read:nowhere", "--", "true"], 2, "nowhere"),
        (["--allow", "net:*.com:443", "--", "true"], 2, "everybody's hosts"),
        (["--allow", "tool:time/*", "--", "true"], 2, "by the operations of a workflow only"),
        ([], 2, "no command was given"),
        (["--like", "t.yaml", "--", "true"], 2, "is not TEMPLATE:phase/operation"),
        (["--like", "t.yaml:look/nope"], 2, "look/shout, look/list"),
        (["--like", "t.yaml:look/shout"], 15, "--allow read:data"),
        (["--report", "nowhere/r.json", "--", "true"], 2, "--report nowhere/r.json"),
    ],
)
def test_the_exit_code_says_how_it_ended(argv, code, said, project, capfd):
    assert code == main(["exec", *argv])
    assert said in capfd.readouterr().err


def test_the_command_reads_what_is_piped_in_and_its_streams_stay_apart(project):
    done = subprocess.run(
        cli_argv("exec", "--", "sh", "-c", "cat; echo aside >&2"),
        input=b"x" * 300_000,
        capture_output=True,
        check=False,
    )

    assert (0, b"x" * 300_000, b"aside\n") == (done.returncode, done.stdout, done.stderr)


def test_a_denied_file_names_the_grant_that_shows_it(project, capfd):
    assert 1 == main(["exec", "--", "cat", "data/a"])
    assert "hint: --allow read:data/a" in capfd.readouterr().err

    assert 0 == main(["exec", "--allow", "read:data", "--", "cat", "data/a"])
    assert "kept" == capfd.readouterr().out


def test_only_granted_names_are_in_the_environment(project, capfd, monkeypatch):
    monkeypatch.setenv("SHOWN", "1")
    monkeypatch.setenv("KEPT_BACK", "2")

    assert 0 == main(["exec", "--allow", "env:SHOWN", "--", "env"])

    names = {line.partition("=")[0] for line in capfd.readouterr().out.splitlines()}
    assert "SHOWN" in names
    assert "KEPT_BACK" not in names


def test_the_report_holds_the_outcome_and_follows_no_link(project):
    (project / "victim").write_text("mine")
    (project / "r.json").symlink_to("victim")

    assert 0 == main(["exec", "--report", "r.json", "--", "true"])

    report = json.loads((project / "r.json").read_text())
    assert ("fulfilled", 0, "full") == (report["status"], report["exitCode"], report["sandboxLevel"])
    assert "mine" == (project / "victim").read_text()
    assert ["data", "r.json", "t.yaml", "victim"] == sorted(path.name for path in project.iterdir())


def test_the_report_holds_no_secret_and_no_personal_data_and_what_is_printed_is_passed_on(project, capfd, monkeypatch):
    monkeypatch.setenv("SHOWN", "granted value")
    said = "alice@example.org AKIA" + "IOSFODNN7EXAMPLE granted value"
    code = f'def run(): print("{said}"); return "{said}"'
    (project / "t.yaml").write_text(
        "name: x\nphases: [{id: a, name: A, operations: {id: b, type: python, policy: {env: [SHOWN]}, code: '"
        + code
        + "'}}]\n"
    )

    assert 0 == main(["exec", "--like", "t.yaml:a/b", "--allow", "env:SHOWN", "--report", "r.json"])

    report = json.loads((project / "r.json").read_text())
    assert said in capfd.readouterr().out
    assert "[email] [secret:aws-key] [secret:known]" == report["result"]
    assert (2, {"email": 2}) == (report["scrubbed"] // 2, report["personal"])


def test_like_runs_the_operation_itself_under_its_policy(project, capfd):
    assert 0 == main(["exec", "--like", "t.yaml:look/shout", "--allow", "read:data", "--param", "word=hi"])
    assert {"word": "HI", "data": "kept"} == json.loads(capfd.readouterr().out)

    assert 0 == main(["exec", "--like", "t.yaml:look/list", "--allow", "read:data", "--timeout", "30s"])
    assert "a\n" == capfd.readouterr().out


def test_like_runs_another_command_under_the_same_policy(project, capfd):
    argv = ["exec", "--like", "t.yaml:look/shout", "--allow", "read:.", "--", "sh", "-c", "ls; cat t.yaml"]

    assert 1 == main(argv)

    shown = capfd.readouterr()
    assert "data\n" == shown.out
    assert "t.yaml" in shown.err


def on_a_terminal(*argv, cwd):
    """Run with a terminal for all three streams; what was seen on it, and the exit code."""
    controller, end = pty.openpty()
    with subprocess.Popen(cli_argv("exec", *argv), stdin=end, stdout=end, stderr=end, cwd=cwd) as process:
        os.close(end)
        seen = b""
        while True:
            try:
                data = os.read(controller, 4096)
            except OSError:
                break
            if not data:
                break
            seen += data
        os.close(controller)
    return seen, process.returncode


PAINT = ["--", "printf", r"\033[31mred\033[0m\n"]


def test_a_terminal_gets_no_control_characters_of_the_command(project):
    seen, code = on_a_terminal(*PAINT, cwd=project)

    assert (0, b"\\x1b[31mred\\x1b[0m") == (code, seen.strip())


def test_with_tty_the_command_has_a_terminal_and_is_passed_through(project):
    seen, code = on_a_terminal("--tty", *PAINT, cwd=project)

    assert (0, b"\x1b[31mred\x1b[0m") == (code, seen.strip())
    assert "yes" in run_cli("exec", "--tty", "--", "sh", "-c", "test -t 0 && test -t 1 && echo yes", cwd=project).stdout


def test_tty_in_this_process_relays_what_the_terminal_says(project, capfd):
    assert 0 == main(["exec", "--tty", "--", "sh", "-c", "test -t 1 && echo on a terminal"])
    assert "on a terminal\r\n" == capfd.readouterr().out


def test_the_users_terminal_is_raw_only_while_it_lasts(monkeypatch):
    controller, end = pty.openpty()
    kept = os.dup(0)
    os.dup2(end, 0)
    try:
        before = termios.tcgetattr(0)
        with terminal.own_terminal() as (theirs, ours):
            assert before != termios.tcgetattr(0)
            assert os.isatty(theirs)
            assert os.get_blocking(theirs)
            assert not os.get_blocking(ours)
        assert before == termios.tcgetattr(0)
    finally:
        os.dup2(kept, 0)
        for fd in (controller, end, kept):
            os.close(fd)
