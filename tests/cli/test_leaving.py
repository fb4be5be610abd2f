"""What of a run reaches terminals, documents and logs, and what stays where it is. Sandboxes are faked."""

from __future__ import annotations

import json

import pytest

from sage_sandbox.cli.main import main
from sage_sandbox.errors import ExitCode
from sage_sandbox.outcome import Outcome, rejected

MAIL = "alice@example.org"
COMMITS = [{"author": MAIL, "subject": f"commit {number}"} for number in range(3000)]


def give(value):
    return lambda _job, _cancel_fd: Outcome("fulfilled", result=json.dumps(value).encode(), level="full")


@pytest.fixture
def large(world):
    """Its first phase leaves a large result with personal data; the second returns what it was given."""
    world.acts["a/op-1"] = give({"commits": COMMITS, "by": {MAIL: 3000}})
    return world


def test_the_terminal_gets_the_kept_part_and_is_told_what_it_is_not(large, capsys):
    assert large.run() == ExitCode.DONE

    out, err = capsys.readouterr()
    first = next(line for line in out.splitlines() if "op-1" in line)
    assert '"author": "[email]", "subject": "commit 0"' in first
    assert ' more"' in first
    assert MAIL not in out + err
    assert max(len(line.encode()) for line in out.splitlines()) < 2100
    assert "handed back (9" in err
    assert "of personal data replaced in what is handed back" in err
    assert "≈" in next(line for line in err.splitlines() if "Workflow complete" in line)


def test_the_document_gets_it_too_and_counts(large, capsys):
    assert large.run("--json") == ExitCode.DONE

    out = capsys.readouterr().out
    document = json.loads(out)
    operation = document["results"]["phases"][0]["operations"][0]
    handed = document["results"]["metrics"]["handedBack"]
    assert {"author": "[email]", "subject": "commit 0"} == operation["result"]["commits"][0]
    assert operation["result"]["commits"][-1].startswith("… 2,9")
    assert {"[email]": 3000} == operation["result"]["by"]
    assert MAIL not in out
    assert handed["bytes"] < handed["bytesProduced"] / 50
    assert handed["tokens"] == document["results"]["metrics"]["totalTokens"] > 0
    assert handed["tokensEstimated"] in (True, False)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_full_prints_whole_results_without_personal_data(large, capsys, options):
    assert large.run("--full", *options) == ExitCode.DONE

    out = capsys.readouterr().out
    assert "commit 2999" in out
    assert MAIL not in out


def test_dependents_and_state_have_all_of_it(large, capsys):
    large.run()

    assert {"a": {"commits": COMMITS, "by": {MAIL: 3000}}} == json.loads(large.jobs[1].inputs)
    capsys.readouterr()
    assert main(["state", "export", "f"]) == ExitCode.DONE
    exported = json.loads(capsys.readouterr().out)
    assert {"commits": COMMITS, "by": {MAIL: 3000}} == exported["checkpoints"]["a"]["results"]["op-1"]


def test_a_resume_hands_back_what_an_earlier_process_kept(large, capsys):
    large.acts["c/op-1"] = lambda _job, _fd: rejected("error", "no")
    large.run()
    del large.acts["c/op-1"]
    capsys.readouterr()

    assert large.resume("--json") == ExitCode.DONE

    operation = json.loads(capsys.readouterr().out)["results"]["phases"][0]["operations"][0]
    assert operation["result"]["commits"][-1].startswith("… 2,9")


def test_a_template_says_what_is_kept(world, capsys):
    world.write({"a": {"op_fields": {"keep": {"fields": ["commits.subject"], "max_items": 2}}}})
    world.acts["a/op-1"] = give({"commits": COMMITS, "by": {MAIL: 3000}})
    world.run()

    kept = '{"commits": [{"subject": "commit 0"}, {"subject": "commit 1"}, "… 2,998 more"]}'
    assert kept in capsys.readouterr().out


def test_errors_reach_terminal_document_log_and_status_without_personal_data(world, capsys):
    world.acts["b/x"] = lambda _job, _cancel_fd: rejected("error", f"no mail for {MAIL}", f"ask {MAIL}")
    world.run()
    out, err = capsys.readouterr()
    world.resume("--json")
    document = capsys.readouterr().out
    main(["status", "f"])
    main(["status", "f", "--json"])
    main(["logs", "f"])
    said = capsys.readouterr().out

    for text in (out, err, document, said):
        assert "no mail for [email]" in text
        assert MAIL not in text
    main(["state", "export", "f"])
    assert f"no mail for {MAIL}" in capsys.readouterr().out


def test_what_is_small_and_has_nothing_personal_is_whole_and_nothing_is_said_of_it(world, capsys):
    world.acts["a/op-1"] = give({"files": 12})
    world.run()

    out, err = capsys.readouterr()
    assert 'op-1: {"files": 12}' in out
    assert "handed back" not in err
