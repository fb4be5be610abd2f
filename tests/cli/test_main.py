"""The frame: what is loaded when, and how every command ends."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from types import ModuleType

import click
import pytest
from commands import PACKAGE_FOLDER, cli_argv, loaded_by, run_cli

from sage_sandbox.cli import main as frame
from sage_sandbox.errors import DefinitionError, ExitCode, Interrupted, NotGranted, Problem, SageError, UsageError


@pytest.fixture
def verb(monkeypatch):
    """A verb `try` that does what the test says."""

    def install(act, *, confines=False):
        module = ModuleType("sage_sandbox_try")
        setattr(module, "command", click.Command("try", callback=act))  # noqa: B010 - a module has no such attribute to mypy
        monkeypatch.setitem(sys.modules, "sage_sandbox_try", module)
        monkeypatch.setattr(frame, "VERBS", {"try": frame.Verb("sage_sandbox_try", "Try.", confines=confines)})

    return install


def raising(error):
    def act():
        raise error

    return act


def test_help_lists_every_verb_and_succeeds():
    done = run_cli("--help")

    assert (0, "") == (done.returncode, done.stderr)
    assert list(frame.VERBS) == [name for name in frame.VERBS if f"\n  {name} " in done.stdout]


def test_help_loads_click_and_nothing_else_of_the_dependencies():
    loaded = loaded_by("from sage_sandbox.cli.main import main\nmain(['--help'])")
    ours = sorted(name for name in loaded if name.startswith("sage_sandbox."))

    assert ["sage_sandbox.cli", "sage_sandbox.cli.main"] == ours
    assert {"loky", "pydantic", "yaml", "psutil", "cryptography", "filelock", "multiprocessing"}.isdisjoint(loaded)


@pytest.mark.parametrize("name", frame.VERBS)
def test_every_verb_can_be_loaded_and_says_what_the_list_says(name):
    command = import_module(frame.VERBS[name].module).command

    assert frame.VERBS[name].help == command.get_short_help_str(limit=200)


def test_no_arguments_show_the_help_on_stderr_and_exit_2():
    done = run_cli()

    assert (2, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith("Usage: sage-sandbox")


def test_version_is_printed(capsys):
    assert frame.main(["--version"]) == 0

    assert capsys.readouterr().out.startswith("sage-sandbox ")


def test_unknown_verb_is_a_usage_error_with_a_hint(capsys):
    assert frame.main(["fly"]) == ExitCode.USAGE

    assert capsys.readouterr().err == "✗ no such command 'fly'\nhint: sage-sandbox --help\n"


def test_unknown_option_points_to_the_help_of_its_verb(verb, capsys):
    verb(lambda: None)

    assert frame.main(["try", "--high"]) == ExitCode.USAGE

    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("✗ no such option")
    assert "hint: sage-sandbox try --help" == hint


@pytest.mark.parametrize("code", [None, 0, 1, ExitCode.PAUSED, ExitCode.TIMEOUT])
def test_a_verbs_return_value_is_the_exit_code(verb, code):
    verb(lambda: code)

    assert frame.main(["try"]) == (code or 0)


@pytest.mark.parametrize("error", [SageError("no"), UsageError("no"), NotGranted("no"), Interrupted("no")], ids=type)
def test_an_error_of_ours_is_one_line_and_its_own_exit_code(verb, capsys, error):
    verb(raising(error))

    assert frame.main(["try"]) == error.exit_code

    assert capsys.readouterr() == ("", "✗ no\n")


def test_a_hint_follows_its_error(verb, capsys):
    verb(raising(UsageError("that is no number", "write --top 3")))

    frame.main(["try"])

    assert capsys.readouterr().err == "✗ that is no number\nhint: write --top 3\n"


def test_foreign_text_in_an_error_cannot_reach_the_terminal(verb, capsys):
    verb(raising(SageError("bad\x1b[2Jname", "not\u202ethis")))

    frame.main(["try"])

    assert capsys.readouterr().err == "✗ bad\\x1b[2Jname\nhint: not\\u202ethis\n"


def test_every_problem_of_a_definition_is_shown(verb, capsys):
    problems = (Problem("w.yaml", 3, 5, "phases[0].id", "is empty"), Problem("w.yaml", 9, 1, "name", "is missing"))
    verb(raising(DefinitionError("2 problems", "", problems)))

    assert frame.main(["try"]) == ExitCode.USAGE

    assert "w.yaml:3:5" in (said := capsys.readouterr().err)
    assert "w.yaml:9:1" in said


def test_an_unexpected_error_is_one_line_that_says_how_to_see_more(verb, capsys):
    verb(raising(ZeroDivisionError("division by zero")))

    assert frame.main(["try"]) == ExitCode.FAILED

    said = capsys.readouterr().err
    assert said == "✗ internal error: ZeroDivisionError: division by zero\nhint: set SAGE_DEBUG=1 to see where\n"


def test_sage_debug_shows_where_an_unexpected_error_came_from(verb, capsys, monkeypatch):
    monkeypatch.setenv("SAGE_DEBUG", "1")
    verb(raising(ZeroDivisionError("division by zero")))

    frame.main(["try"])

    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()], ids=type)
def test_an_interrupt_is_quiet_and_exits_130(verb, capsys, error):
    verb(raising(error))

    assert frame.main(["try"]) == ExitCode.CANCELLED

    assert "Traceback" not in capsys.readouterr().err


def test_a_reader_who_leaves_early_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(cli_argv("--help"), stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)

    assert (1, b"") == (done.returncode, done.stderr)


def test_a_reader_who_leaves_during_the_last_words_is_no_error():
    code = (
        "from sage_sandbox.cli import main as m, demo; demo.command.callback = lambda **_: print('x'); m.main(['demo'])"
    )
    read, write = os.pipe()
    os.close(read)
    env = {**os.environ, "PYTHONPATH": PACKAGE_FOLDER, "PYTHONUNBUFFERED": ""}
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, env=env, check=False)
    os.close(write)

    assert (0, b"") == (done.returncode, done.stderr)


def test_verbs_are_listed_for_shell_completion():
    assert list(frame.VERBS) == frame.cli.list_commands(click.Context(frame.cli))


def test_confining_verbs_say_why_they_cannot_on_other_systems(verb, capsys, monkeypatch):
    verb(lambda: pytest.fail("was run"), confines=True)
    monkeypatch.setattr(sys, "platform", "darwin")

    assert frame.main(["try", "x.yaml", "--allow", "read:."]) == ExitCode.SANDBOX_UNAVAILABLE

    assert capsys.readouterr().err.startswith(
        "✗ try confines operations with the Linux kernel, and this is darwin\nhint: "
    )


def test_other_verbs_work_on_other_systems(verb, monkeypatch):
    verb(lambda: 0)
    monkeypatch.setattr(sys, "platform", "darwin")

    assert frame.main(["try"]) == 0


def test_python_m_never_has_the_working_directory_on_the_module_path(tmp_path):
    planted = tmp_path / "planted"
    for name in ("click", "json", "loky", "pickle"):
        (tmp_path / f"{name}.py").write_text(f"open({str(planted)!r}, 'a').write({name!r})\n", encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": PACKAGE_FOLDER}
    env.pop("PYTHONSAFEPATH", None)
    subprocess.run([sys.executable, "-c", "import click"], cwd=tmp_path, env=env, check=True)
    assert planted.exists(), "without protection the planted module is run"
    planted.unlink()

    argv = [sys.executable, "-m", "sage_sandbox", "--help"]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)

    assert done.stdout.startswith("Usage: sage-sandbox")
    assert not planted.exists()
