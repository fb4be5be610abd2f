"""``sage-sandbox validate``."""

from __future__ import annotations

import json

import pytest

from sage_sandbox.cli.main import main

GOOD = "name: n\nphases:\n- {id: a, name: A, operations: [{type: command, argv: [ls]}, {type: command, argv: [ls]}]}\n"
BAD = "name: n\nphases:\n- {id: a, name: A, operations: {type: command, argv: [ls]}, dependencies: [a]}\n"
WARNED = "name: n\nphases:\n- {id: params, name: A, operations: {type: command, argv: [ls]}}\n"


@pytest.fixture
def validate(tmp_path, monkeypatch, capsys):
    """Validate a text by the command line: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(text, *options):
        (tmp_path / "t.yaml").write_text(text)
        code = main(["validate", "t.yaml", *options])
        return (code, *capsys.readouterr())

    return run


def test_valid_template_is_summed_up(validate):
    assert (0, "✓ t.yaml: 1 phase, 2 operations, depth 1\n", "") == validate(GOOD)


def test_cycle_is_shown_as_specified(validate):
    expected = (
        "✗ t.yaml:3:75: phases[0].dependencies: Cycle detected in workflow dependencies:\n"
        "  a → a\n"
        "  Fix: remove the circular dependency\n"
    )

    assert (2, "", expected) == validate(BAD)


def test_warning_does_not_make_it_invalid(validate):
    code, out, err = validate(WARNED)

    assert (0, "✓ t.yaml: 1 phase, 1 operation, depth 1\n") == (code, out)
    assert err.startswith("⚠ t.yaml:3:8: phases[0].id: ${params} never means this phase")


def test_json_of_a_valid_template(validate):
    code, out, err = validate(GOOD, "--json")

    assert (0, "") == (code, err)
    assert {"valid": True, "errors": [], "warnings": [], "graph": {"nodes": 1, "edges": 0, "depth": 1}} == json.loads(
        out
    )


def test_json_of_an_invalid_template(validate):
    code, out, err = validate(BAD, "--json")

    assert (2, "") == (code, err)
    assert {
        "valid": False,
        "errors": [
            {
                "field": "phases[0].dependencies",
                "message": "Cycle detected in workflow dependencies:\n  a → a",
                "severity": "error",
                "file": "t.yaml",
                "line": 3,
                "column": 75,
            }
        ],
        "warnings": [],
        "graph": {"nodes": 1, "edges": 1, "depth": 0},
    } == json.loads(out)


def test_json_tells_warnings_apart(validate):
    found = json.loads(validate(WARNED, "--json")[1])

    assert (True, [], ["warning"]) == (
        found["valid"],
        found["errors"],
        [entry["severity"] for entry in found["warnings"]],
    )


def test_missing_file_is_a_usage_error(validate, capsys):
    assert 2 == main(["validate", "no.yaml"])

    assert "✗ cannot open no.yaml: no such file or directory\n" == capsys.readouterr().err


def test_hostile_text_does_not_reach_the_terminal(validate):
    err = validate('"\\e]0;x\\a\\u202E\\n✗ forged": 1\n')[2]

    assert not {"\x1b", "\x07", "\u202e"} & set(err)
    assert all(line.startswith("✗ t.yaml:") for line in err.splitlines())


def test_name_is_looked_up_in_the_project(tmp_path, monkeypatch, capsys):
    (tmp_path / ".sage/templates").mkdir(parents=True)
    (tmp_path / ".sage/templates/flow.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)

    assert 0 == main(["validate", "flow"])
    assert "✓ flow: 1 phase, 2 operations, depth 1\n" == capsys.readouterr().out
