"""``sage-sandbox plan``."""

from __future__ import annotations

import json

import pytest

from sage_sandbox.cli.main import main

TEMPLATE = """\
name: "rep\\e[31mort"
description: what it is made of
phases:
- id: survey
  name: 'Sur"vey\\'
  operations:
  - {id: languages, type: python, code: 'def run(): pass', policy: {read: [src]},
     limits: {memory: 512M, cpu: 2m, pids: 9, disk: 1M}}
  - {id: history, type: command, argv: [git, "log\\e"], policy: {read: [docs]}, timeout: 5s, retries: 2}
- id: other
  name: Other
  operations: {type: command, argv: ["true"]}
- id: digest
  name: "Digest]"
  dependencies: [survey, other]
  operations: {type: python, file: digest.py}
"""


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    """Plan the template by the command line: exit code, stdout, stderr."""
    project = tmp_path / "project"
    for folder in ("src", "docs"):
        (project / folder).mkdir(parents=True)
    (project / "digest.py").write_text("def run(): pass\n")
    (project / "t.yaml").write_text(TEMPLATE)
    monkeypatch.chdir(project)

    def run(*options, text=TEMPLATE):
        (project / "t.yaml").write_text(text)
        code = main(["plan", "t.yaml", *options])
        return (code, *capsys.readouterr())

    return run


def test_batches_are_drawn(plan):
    code, out, err = plan("--allow", "read:src")

    assert (0, "") == (code, err)
    lines = out.splitlines()
    assert "rep\\x1b[31mort: 3 phases, 4 operations, depth 2" == lines[0]
    assert "  what it is made of" == lines[1]
    for expected in (
        "── batch 1, 2 together",
        "── batch 2",
        ' ● survey  Sur"vey\\',
        " ○ other  Other",
        " ● digest  Digest]  ← survey, other",
        "   ├ languages  python  inline code  [memory 512 MiB, cpu 2 min, pids 9, disk 1 MiB]",
        "   └ history  command  git log\\x1b  [timeout 5 s, retries 2]",
        "   └ op-1  python  digest.py",
        "longest chain (●): survey → digest",
    ):
        assert expected in lines


def test_what_is_granted_and_what_is_missing_is_told_apart(plan):
    out = plan("--allow", "read:src")[1]

    assert "✓ read:src  granted" in out
    assert "✗ read:docs  not granted" in out
    assert "to grant what is missing:\n  --allow read:docs" in out


def test_hidden_names_are_printed(plan):
    from sage_sandbox.policy import HIDDEN_NAMES

    assert f"never shown below a read grant on a folder: {', '.join(HIDDEN_NAMES)}" in plan()[1]


def test_nothing_asked_for_is_said(plan):
    text = "name: n\nphases: [{id: a, name: A, operations: {type: command, argv: [ls]}}]\n"

    assert plan(text=text)[1].endswith("asks for nothing\n")


def test_what_cannot_be_granted_is_said(plan):
    text = "name: n\nphases: [{id: a, name: A, operations: {type: command, argv: [ls], policy: {read: [no-such]}}}]\n"

    assert "✗ a/op-1 asks for read:no-such" in plan(text=text)[1]


def test_what_the_user_will_run_later_is_marked(plan, tmp_path):
    (tmp_path / "project/Makefile").touch()
    text = "name: n\nphases: [{id: a, name: A, operations: {type: command, argv: [ls], policy: {write: [Makefile]}}}]\n"

    assert "runs later" in plan(text=text)[1]


@pytest.mark.parametrize("options", [("--json",), ("--format", "json")])
def test_json_has_it_all(plan, options):
    found = json.loads(plan(*options, "--allow", "read:src")[1])

    assert {"nodes": 3, "edges": 2, "depth": 2} == found["graph"]
    assert [["survey", "other"], ["digest"]] == found["batches"]
    assert ["survey", "digest"] == found["criticalPath"]
    assert ["survey", "other"] == found["phases"][2]["dependencies"]
    languages, history = found["phases"][0]["operations"]
    assert ("read:src", True) == (languages["asks"][0]["ask"], languages["asks"][0]["granted"])
    assert ("read:docs", False) == (history["asks"][0]["ask"], history["asks"][0]["granted"])
    assert {"memory": 512 << 20, "cpu_s": 120.0, "pids": 9, "disk": 1 << 20} == languages["limits"]
    assert ["read:docs"] == found["missing"]


def test_mermaid_labels_are_entities(plan):
    assert (
        "flowchart TD\n"
        '  p0["survey<br/>Sur#34;vey#92;"]\n'
        '  p1["other<br/>Other"]\n'
        '  p2["digest<br/>Digest#93;"]\n'
        "  p0 --> p2\n"
        "  p1 --> p2\n"
        "  style p0 stroke-width:3px\n"
        "  style p2 stroke-width:3px\n"
    ) == plan("--format", "mermaid")[1]


def test_dot_labels_are_quoted(plan):
    assert (
        "digraph workflow {\n"
        "  node [shape=box];\n"
        '  "survey" [label="survey\\nSur\\"vey\\\\", penwidth=3];\n'
        '  "other" [label="other\\nOther"];\n'
        '  "digest" [label="digest\\nDigest]", penwidth=3];\n'
        '  "survey" -> "digest";\n'
        '  "other" -> "digest";\n'
        "}\n"
    ) == plan("--format", "dot")[1]


def test_invalid_template_is_exit_2(plan):
    code, out, err = plan(text="name: n\n")

    assert (2, "", "✗ t.yaml:1:1: phases: is required\n") == (code, out, err)


def test_wrong_grant_is_exit_2(plan):
    assert 2 == plan("--allow", "nonsense")[0]


def test_notices_of_the_review_are_shown(plan, monkeypatch):
    from sage_sandbox.grants import review as module

    monkeypatch.setattr(module, "review", lambda *_: module.Review(notices=("look\x1bout",)))

    assert "⚠ look\\x1bout" in plan()[1]
