"""The workflows of examples/tools, with the servers that they name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from brokered import registered
from real_servers import PLACES, program, serving_everything

from sage_sandbox.cli.main import main
from sage_sandbox.results import tokens
from sage_sandbox.toolservers.reading import read_catalog

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tools"
LEFT_OUT = (".sage", "node_modules", "__pycache__", "build")


@pytest.fixture
def repository():
    """This repository, with its history."""
    if not (ROOT / ".git").exists():
        pytest.skip("there is no history here: this is no git checkout")
    return ROOT


@pytest.fixture
def example(tmp_path, monkeypatch, repository):
    """A project with the example's files as they are; its servers are on PATH and may read the repository."""
    folder = tmp_path / "tools"
    shutil.copytree(EXAMPLE, folder)
    places = {str(Path(program(name)).parent) for name in PLACES}
    monkeypatch.setenv("PATH", os.pathsep.join((*sorted(places), os.environ["PATH"])))
    monkeypatch.setenv("SAGE_EXAMPLE_REPOSITORY", str(repository))
    # Whose checkout it is does not matter here; git asks for its owner.
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "safe.directory")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "*")
    monkeypatch.chdir(folder)
    return folder


def run(capsys, template, repository, *servers):
    """Approve, run, and what was handed back: as text, and as data."""
    for name in servers:
        assert main(["tools", "--approve", name, "--server", name]) == 0
    allow = [word for name in servers for word in ("--allow", f"tool:{name}/*")]
    argv = ["run", template, *allow, "--param", f"repository={repository}", "--restart"]
    capsys.readouterr()
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert main([*argv, "--json"]) == 0
    phases = json.loads(capsys.readouterr().out)["results"]["phases"]
    return text, {phase["id"]: {one["id"]: one["result"] for one in phase["operations"]} for phase in phases}


def git(repository, *args):
    argv = ["git", *args]
    return subprocess.run(argv, cwd=repository, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_diary_is_written_by_four_servers(example, repository, capsys, monkeypatch):
    with serving_everything() as port:
        monkeypatch.setenv("SAGE_EXAMPLE_PORT", str(port))
        text, found = run(capsys, "diary.yaml", repository, "time", "git", "memory", "everything")
    newest = git(repository, "log", "-1", "--format=%s")[0]
    commits = min(20, int(git(repository, "rev-list", "--count", "HEAD")[0]))
    authors = len(set(git(repository, "log", f"-{commits}", "--format=%an")))

    assert {"commits": commits, "authors": authors, "newest": newest} == found["look"]["op-1"]
    assert f"Echo: {commits} commits by {authors}" == found["note"]["say"]
    (entity,) = found["remember"]["op-1"]["entities"]
    assert "diary" == entity["name"]
    assert f"newest: {newest}" in entity["observations"]
    assert newest in text


def test_git_is_reached_only_from_inside_a_sandbox():
    import sage_sandbox as sage

    operations = [one for phase in sage.load(EXAMPLE / "diary.yaml").phases for one in phase.operations]

    assert {"python"} == {one.type for one in operations if "git/git_log" in one.policy.tool}
    assert 4 == sum(one.type == "mcp" for one in operations)


def test_context_is_saved_and_the_answer_is_right(example, repository, capsys):
    assert tokens.is_exact(), "the extra `tokens` is not installed"
    text, found = run(capsys, "history.yaml", repository, "git", "fs")
    raw = [answer.encode() for answer in read_whole(example, repository)]
    produced, kept = sum(map(tokens.tokens, raw)), tokens.tokens(text.encode())
    with capsys.disabled():
        sizes = f"{sum(map(len, raw)):,} bytes, {produced:,} tokens"
        sys.stdout.write(f"\nread inside: {sizes}; handed back: {kept:,} tokens, {1 - kept / produced:.1%} fewer\n")

    assert kept <= 0.05 * produced
    assert log_of(repository, raw[0]) == found["read"]["log"]
    assert tree_of(repository, raw[1]) == found["read"]["tree"]


def read_whole(example, repository):
    """The two answers as an agent would get them."""
    catalog = read_catalog(example)
    left_out = [".*", *LEFT_OUT, "*.egg-info"]
    with registered(example, catalog.find("git"), catalog.find("fs"), environ=dict(os.environ)) as calls:
        log = calls.value("git/git_log", repo_path=str(repository), max_count=100_000)
        tree = calls.value("fs/directory_tree", path=".", excludePatterns=left_out)
    return log, tree["content"]


def log_of(repository, raw):
    """What git itself says."""
    days = Counter(git(repository, "log", "--format=%ad", "--date=short"))
    authors = Counter(git(repository, "log", "--format=%an"))
    return {
        "bytes read": len(raw),
        "commits": sum(days.values()),
        "first": min(days),
        "last": max(days),
        "most on a day": max(days.values()),
        "authors": dict(authors.most_common(5)),
    }


def tree_of(repository, raw):
    """What the file system itself says."""
    folders: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for folder, below, names in os.walk(repository):
        links = [name for name in below if Path(folder, name).is_symlink()]
        top = Path(folder) == repository
        below[:] = [name for name in below if name not in links and is_shown(name, top=top)]
        shown = [name for name in (*names, *links) if is_shown(name, top=top)]
        folders[os.path.relpath(folder, repository)] += len(shown)
        kinds.update("." + name.rpartition(".")[2] for name in shown)
    fullest = max(folders, key=lambda folder: (folders[folder], folder))
    return {
        "bytes read": len(raw),
        "files": sum(folders.values()),
        "kinds": dict(sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))[:5]),
        "fullest folder": f"./{fullest}",
    }


def is_shown(name, *, top):
    return name not in LEFT_OUT and not (top and (name.startswith(".") or name.endswith(".egg-info")))
