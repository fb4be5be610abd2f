"""``sage-sandbox init``: in an empty folder, beside what is there, and twice."""

from __future__ import annotations

import json
import sys

import pytest
from commands import run_cli
from grants_terminal import answering

from sage_sandbox.cli import init
from sage_sandbox.cli.main import main
from sage_sandbox.errors import ExitCode
from sage_sandbox.projectfiles.changes import Change

THEIRS = '{\n  "mcpServers": {\n    "time": {"command": "mcp-server-time"}\n  },\n  "other": 1\n}\n'


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def files(project):
    return {str(path.relative_to(project)): path.read_bytes() for path in project.rglob("*") if path.is_file()}


def test_an_empty_folder_gets_everything(project, capsys):
    code = main(["init"])
    out, err = capsys.readouterr()

    assert (ExitCode.DONE, "") == (code, err)
    assert set(files(project)) == {line[2 : line.index(":")] for line in out.splitlines()}
    assert {"created"} == {line.rpartition(": ")[2] for line in out.splitlines()}
    assert (project / ".sage").stat().st_mode & 0o777 == 0o700


def test_a_second_time_changes_nothing(project, capsys):
    main(["init"])
    before = {path: (project / path).stat() for path in files(project)}
    capsys.readouterr()

    assert main(["init", "--yes"]) == ExitCode.DONE
    assert before == {path: (project / path).stat() for path in files(project)}
    assert {"unchanged"} == {line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()}


def test_without_a_terminal_nothing_that_is_there_changes(project, capsys):
    (project / ".mcp.json").write_text(THEIRS)
    code = main(["init"])
    out, err = capsys.readouterr()

    assert code == ExitCode.NOT_GRANTED
    assert THEIRS == (project / ".mcp.json").read_text()
    assert "⚠ .mcp.json: not changed" in out
    assert '+    "sage-sandbox": {' in err
    assert err.endswith("hint: --yes changes what is there, too\n")
    assert (project / ".sage/templates/hello.yaml").exists()


def test_yes_merges_and_shows_how(project, capsys):
    (project / ".mcp.json").write_text(THEIRS)

    assert main(["init", "--yes"]) == ExitCode.DONE

    merged = json.loads((project / ".mcp.json").read_text())
    assert {**json.loads(THEIRS), "mcpServers": merged["mcpServers"]} == merged
    assert ["time", "sage-sandbox"] == list(merged["mcpServers"])
    out, err = capsys.readouterr()
    assert "✓ .mcp.json: changed" in out
    assert '+    "sage-sandbox": {' in err


def test_an_entry_of_that_name_is_not_clobbered(project, capsys):
    mine = '{"mcpServers": {"sage-sandbox": {"command": "mine"}}}'
    (project / ".mcp.json").write_text(mine)

    assert main(["init", "--yes"]) == ExitCode.DONE
    assert mine == (project / ".mcp.json").read_text()
    assert "⚠ .mcp.json: kept as it is" in capsys.readouterr().out


@pytest.mark.parametrize(("keys", "agreed"), [(b"y\n", True), (b"yes\n", True), (b"n\n", False), (b"\n", False)])
def test_on_a_terminal_it_is_asked(keys, agreed):
    change = Change(".mcp.json", b"a", b"b")

    answer, shown = answering(keys, lambda stdin, stderr: init.ask(change, stdin, stderr))

    assert agreed is answer
    assert "Change .mcp.json? y = yes, n = no [n] " in shown


@pytest.mark.parametrize(("answer", "outcome"), [(True, "changed"), (False, "not changed")])
def test_what_is_answered_is_done(project, capsys, monkeypatch, answer, outcome):
    (project / ".gitignore").write_text("x\n")
    monkeypatch.setattr(init, "_terminal_asker", lambda: lambda _: answer)

    assert main(["init"]) == ExitCode.DONE
    assert f" .gitignore: {outcome}\n" in capsys.readouterr().out
    assert answer is ((project / ".gitignore").read_text() != "x\n")


def test_somebody_is_asked_only_where_both_ends_are_a_terminal(monkeypatch):
    def use(stdin, stderr):
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stderr", stderr)
        asker = init._terminal_asker()
        return asker is not None and asker(Change("f", b"", b"x"))

    assert answering(b"y\n", use)[0] is True
    monkeypatch.setattr(sys, "stdin", None)
    assert init._terminal_asker() is None


def test_a_planted_link_ends_it_before_anything_is_written(project, tmp_path, capsys):
    target = tmp_path / "target"
    target.write_text("theirs")
    (project / ".mcp.json").symlink_to(target)

    assert main(["init", "--yes"]) == ExitCode.STATE_CORRUPTED
    assert f"✗ {project}/.mcp.json is a symbolic link" in capsys.readouterr().err
    assert [".mcp.json"] == [path.name for path in project.iterdir()]
    assert target.read_text() == "theirs"


def test_a_file_that_cannot_be_merged_ends_it_before_anything_is_written(project, capsys):
    (project / ".mcp.json").write_text("// mine\n{}")

    assert main(["init", "--yes"]) == ExitCode.USAGE
    assert "✗ .mcp.json: is not JSON" in capsys.readouterr().err
    assert [".mcp.json"] == [path.name for path in project.iterdir()]


def test_the_diff_is_made_fit_for_a_terminal(project, capsys):
    (project / ".gitignore").write_text("\x1b]0;owned\x07\n")
    main(["init"])

    assert r"\x1b]0;owned\x07" in capsys.readouterr().err


def test_json_says_what_was_done_and_asks_nobody(project):
    (project / ".gitignore").write_text("x\n")
    done = run_cli("init", "--json", cwd=project)
    found = {file["path"]: file for file in json.loads(done.stdout)["files"]}

    assert (ExitCode.NOT_GRANTED, "hint: --yes changes what is there, too\n") == (done.returncode, done.stderr)
    assert found[".gitignore"]["outcome"] == "not changed"
    assert "+/.sage/*" in found[".gitignore"]["diff"]
    assert found[".mcp.json"] == {"path": ".mcp.json", "outcome": "created", "diff": []}


def test_the_template_that_asks_for_nothing_runs(project):
    assert run_cli("init", cwd=project).returncode == 0

    done = run_cli("run", "hello", "--json", "--param", "whom=reader", cwd=project)
    assert (0, "hello, reader") == (
        done.returncode,
        json.loads(done.stdout)["results"]["phases"][0]["operations"][0]["result"]["greeting"],
    )


def test_the_template_that_reads_the_project_says_what_is_in_it(project):
    assert run_cli("init", cwd=project).returncode == 0
    (project / "data.csv").write_text("x" * 5000)

    done = run_cli("run", "overview", "--json", "--allow", "read:.", cwd=project)
    phases = {phase["id"]: phase for phase in json.loads(done.stdout)["results"]["phases"]}
    summary = phases["summary"]["operations"][0]["result"]
    assert done.returncode == 0
    assert summary["largest"]["data.csv"] == 5000
    assert summary["kinds"][".csv"] == 1
