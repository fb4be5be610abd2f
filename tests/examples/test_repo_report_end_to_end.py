"""The repo_report example as a user runs it: a process of its own, every operation in the sandbox."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import run_cli

TEMPLATE = str(Path(__file__).parents[2] / "examples" / "repo_report" / "repo_report.yaml")

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")

FILES = {
    "LICENSE": "Apache License\nVersion 2.0, January 2004\n",
    "src/one.py": "# TODO(ada): later\ndef first():\n    a = 1\n    return a\n",
    "src/two.py": "class Two:\n    def second(self):\n        return 2\n",
    "copy/two.py": "class Two:\n    def second(self):\n        return 2\n",
    "broken.py": "def (:\n",
    "requirements.txt": "click\nrich>=13\n",
    ".env": "# FIXME: a secret that no report may show\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "src" / "logo.png").write_bytes(b"\x89PNG\0")
    (folder / "link").symlink_to("/etc/passwd")
    return folder


def commit(project: Path, author: str, when: str) -> None:
    identity = {"NAME": author, "EMAIL": f"{author}@example.org", "DATE": when}
    names = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in identity.items()}
    clean = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", **names}
    for argv in (["init", "-q", "-b", "trunk"], ["add", "-A"], ["commit", "-q", "--allow-empty", "-m", "a change"]):
        subprocess.run(["git", "-c", "core.hooksPath=/dev/null", *argv], cwd=project, env=clean, check=True)


def report_on(project: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the document of ``--json``, stderr."""
    done = run_cli("run", TEMPLATE, "--allow", "read:.", "--json", "--full", *options, cwd=project)
    return done.returncode, json.loads(done.stdout), done.stderr


def phases_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {phase["id"]: phase for phase in document["results"]["phases"]}


def results_of(document: dict[str, Any]) -> dict[str, Any]:
    return {one["id"]: one["result"] for phase in document["results"]["phases"] for one in phase["operations"]}


def digest_of(document: dict[str, Any]) -> dict[str, Any]:
    digest: dict[str, Any] = phases_of(document)["digest"]["operations"][0]["result"]
    return digest


@needs_git
def test_the_report_on_a_git_repository_is_true(project: Path) -> None:
    commit(project, "Ada", "2024-01-31T23:00:00+0000")
    commit(project, "Bob", "2024-02-01T00:30:00+0200")

    code, document, stderr = report_on(project)

    assert (code, document["status"]) == (0, "completed"), stderr
    assert {name: phase["status"] for name, phase in phases_of(document).items()} == dict.fromkeys(
        ("survey", "history", "timeline", "digest"), "completed"
    )
    # By hand: LICENSE 2 lines, one.py 4, two.py 3 twice, broken.py 1, requirements.txt 2: 15, of them Python 11.
    assert digest_of(document)["summary"] == {
        "languages": "6 text files, 15 lines: Python 73 %, Other 13 %, Text 13 %",
        "history": "2 commits by 2 authors, 2024-01-31 to 2024-02-01; busiest: Ada 1, Bob 1; most in 2024-01 (1)",
        "marks": "1 TODO; most in src/one.py (1)",
        "functions": "3 Python functions, median 2 lines; longest: first (src/one.py:2) 3, "
        "Two.second (copy/two.py:2) 2, Two.second (src/two.py:2) 2; 1 file could not be parsed",
        "licences": "Apache-2.0 (LICENSE)",
        "manifests": "requirements.txt (Python, 2 dependencies)",
        "duplicates": "1 group of equal files, 50 B in copies; worst: 2 of 50 B, copy/two.py = src/two.py",
        "not read": "1 binary, 1 links, 1 tool folders",
    }
    assert digest_of(document)["branch"] == "trunk"


@needs_git
def test_every_operation_ran_in_a_sandbox_of_its_own(project: Path) -> None:
    commit(project, "Ada", "2024-01-31T23:00:00+0000")

    _, document, _ = report_on(project)

    operations = [one for phase in document["results"]["phases"] for one in phase["operations"]]
    assert len(operations) == 11
    assert {"full"} == {one["sandboxLevel"] for one in operations}


def test_hidden_files_are_in_no_result(project: Path) -> None:
    _, document, _ = report_on(project)

    assert results_of(document)["marks"]["kinds"]["FIXME"] == 0
    assert ".env" not in json.dumps(document)


def test_a_folder_without_a_repository_has_a_report_that_says_so(project: Path) -> None:
    code, document, stderr = report_on(project)

    history = phases_of(document)["history"]
    assert (code, document["status"]) == (0, "completed"), stderr
    assert history["status"] == "degraded"
    assert {one["id"]: one["status"] for one in history["operations"]} == {
        "log": "rejected", "count": "rejected", "repository": "fulfilled",
    }  # fmt: skip
    assert digest_of(document)["summary"]["history"] == "none to tell: no git repository here"


@needs_git
def test_a_repository_without_commits_has_a_report_that_says_so(project: Path) -> None:
    subprocess.run(["git", "init", "-q", "-b", "trunk", str(project)], check=True)

    code, document, stderr = report_on(project)

    assert code == 0, stderr
    assert digest_of(document)["summary"]["history"] == "none to tell: no commits yet"


@needs_git
def test_a_hostile_git_configuration_runs_nothing(project: Path, tmp_path: Path) -> None:
    commit(project, "Ada", "2024-01-31T23:00:00+0000")
    marker = tmp_path / "ran"
    with (project / ".git" / "config").open("a") as config:
        config.write(
            f'[core]\n\tfsmonitor = "touch {marker}"\n\tpager = "touch {marker}"\n\tsshCommand = "touch {marker}"\n'
        )

    code, document, stderr = report_on(project)

    assert code == 0, stderr
    assert digest_of(document)["summary"]["history"].startswith("1 commit by 1 author")
    assert not marker.exists()


@needs_git
def test_authors_that_are_no_utf8_do_not_cost_the_history(project: Path) -> None:
    subprocess.run(["git", "init", "-q", "-b", "trunk", str(project)], check=True)
    who = b"\xff\xfe <x@example.org> 1706745600 +0000\n"
    tree = subprocess.run(["git", "mktree"], cwd=project, input=b"", capture_output=True, check=True).stdout.strip()
    raw = b"tree " + tree + b"\nauthor " + who + b"committer " + who + b"\nx\n"
    argv = ["git", "hash-object", "-t", "commit", "-w", "--stdin", "--literally"]
    made = subprocess.run(argv, cwd=project, input=raw, capture_output=True, check=True).stdout.decode().strip()
    (project / ".git" / "refs" / "heads" / "trunk").write_text(made + "\n")

    code, document, stderr = report_on(project)

    assert code == 0, stderr
    assert results_of(document)["count"].strip() == "1"
    assert digest_of(document)["summary"]["history"].startswith("1 commit by 1 author, 2024-02-01 to 2024-02-01")


def test_parameters_reach_the_operations(project: Path) -> None:
    code, document, stderr = report_on(project, "--param", "top=1", "--param", "max_file_bytes=40")

    results = results_of(document)
    assert code == 0, stderr
    assert len(results["languages"]["languages"]) == 1
    assert results["languages"]["skipped"] == {"binary": 1, "large": 4, "links": 1}


def test_a_parameter_that_no_operation_takes_is_refused_by_them_and_the_report_is_not_made(project: Path) -> None:
    code, document, _ = report_on(project, "--param", "top=0")

    assert code == 3
    assert phases_of(document)["survey"]["status"] == "failed"
    assert "top must be a whole number from 1 to 1000, not 0" in json.dumps(document)


def test_without_the_grant_nothing_runs_and_the_grant_is_named(project: Path) -> None:
    done = run_cli("run", TEMPLATE, cwd=project)

    assert done.returncode == 15
    assert "--allow read:." in done.stderr


def test_nothing_is_written_into_the_project(project: Path) -> None:
    before = sorted(path.relative_to(project) for path in project.rglob("*"))

    report_on(project)

    after = sorted(path.relative_to(project) for path in project.rglob("*"))
    assert before == [path for path in after if path.parts[0] != ".sage"]
