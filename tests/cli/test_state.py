"""`state`: verified, written out, sealed anew and thrown away, as its user sees it."""

from __future__ import annotations

import json
import os

import pytest
from saved_runs import THREE, fail

from sage_sandbox.cli.main import main
from sage_sandbox.disk.files import sage_folder
from sage_sandbox.disk.locking import acquire
from sage_sandbox.errors import ExitCode
from sage_sandbox.outcome import Outcome
from sage_sandbox.store.layout import lock_name

KEY, OTHER_KEY = "11" * 32, "22" * 32


@pytest.fixture
def saved(world, capsys):
    """A paused run ``f`` and a completed one ``g``."""
    world.acts = {
        "a/op-1": lambda _job, _fd: Outcome("fulfilled", result=b'{"who": "ann"}', stdout=b"hi", exit_code=0),
        "b/y": fail,
    }
    world.run()
    world.acts = {}
    world.main("run", "t.yaml", "g")
    capsys.readouterr()
    return world


def lines(capsys):
    return capsys.readouterr().out.splitlines()


# -- verify ------------------------------------------------------------------------------------------------------------


def test_good_state_is_verified(saved, capsys):
    assert main(["state", "verify"]) == ExitCode.DONE
    assert ["✓ f", "✓ g"] == lines(capsys)
    assert main(["state", "verify", "g"]) == ExitCode.DONE
    assert ["✓ g"] == lines(capsys)


@pytest.mark.parametrize("name", ["workflow-f.json", "workflow-f.json.bak", "workflow-f/b.1.json"])
def test_every_damaged_file_is_named_and_nothing_is_changed(saved, capsys, name):
    saved.spoil(name)
    before = saved.tree()

    assert main(["state", "verify"]) == ExitCode.STATE_CORRUPTED

    wrong, right = lines(capsys)
    assert wrong.startswith("✗ f: ")
    assert name in wrong
    assert "✓ g" == right
    assert before == saved.tree()


def test_a_key_that_is_not_here_is_no_damage(saved, monkeypatch, capsys):
    monkeypatch.setenv("SAGE_STATE_KEY", KEY)

    assert main(["state", "verify"]) == ExitCode.WRONG_KEY
    assert ["✗ f:", "✗ g:"] == [line[:4] for line in lines(capsys)]


@pytest.mark.parametrize("verb", ["verify", "export"])
def test_looking_makes_no_key(saved, verb, own_home):
    key = own_home / ".config" / "sage-sandbox" / "state.key"
    key.unlink()

    assert main(["state", verb, "f"]) == ExitCode.WRONG_KEY
    assert not key.exists()


@pytest.mark.parametrize("verb", [("verify", "h"), ("export", "h")])
def test_an_unknown_feature_is_no_such_run(saved, verb):
    assert main(["state", *verb]) == ExitCode.NO_SUCH_RUN


@pytest.mark.parametrize("verb", [("verify",), ("export", "f"), ("rekey",), ("gc",)])
def test_where_nothing_was_saved_there_is_nothing_to_look_after(world, verb):
    assert main(["state", *verb]) == ExitCode.NO_SUCH_RUN
    assert [world.project / "t.yaml"] == list(world.project.iterdir())


# -- export ------------------------------------------------------------------------------------------------------------


def camel(value):
    """Whether every name in a document is written as the specification writes them."""
    if isinstance(value, dict):
        return all("_" not in name and camel(item) for name, item in value.items())
    return all(camel(item) for item in value) if isinstance(value, list) else True


def test_an_export_holds_every_result_under_the_names_of_the_specification(saved, capsys):
    assert main(["state", "export", "f"]) == ExitCode.DONE

    document = json.loads(capsys.readouterr().out)
    assert ("1.0", "f", "Steps", "paused", ["a", "b", "c"]) == tuple(
        document[name] for name in ("version", "feature", "template", "status", "phaseIds")
    )
    a, b = document["checkpoints"].values()
    assert {"op-1": {"who": "ann"}} == a["results"]
    assert ("b", "failed", "failed", "it was told to") == tuple(
        b[name] for name in ("phaseId", "status", "outcome", "error")
    )
    assert {"duration", "tokens", "operationCount", "parallelOps"} == b["metrics"].keys()
    (operation,) = a["operations"]
    assert ("op-1", "fulfilled", "hi", 0) == tuple(operation[name] for name in ("id", "status", "stdout", "exitCode"))
    assert {"durationMs", "cpuMs", "maxRssBytes", "sandboxLevel"} <= operation.keys()
    assert json.loads((saved.project / "t.yaml").read_text()) == json.loads(document["definitionInForce"]["text"])
    del document["definitionInForce"]["files"]
    assert camel(document)


# -- rekey -------------------------------------------------------------------------------------------------------------


def test_rekey_seals_everything_with_a_new_key(saved, own_home, capsys):
    before = saved.tree()
    first = (own_home / ".config" / "sage-sandbox" / "state.key").read_text()

    assert main(["state", "rekey"]) == ExitCode.DONE

    (said,) = lines(capsys)
    keys = (own_home / ".config" / "sage-sandbox" / "state.key").read_text()
    identity = said.removeprefix("✓ 2 runs are sealed with key ")
    assert keys.endswith(first)
    assert keys != first
    for name, data in saved.tree().items():
        assert "ACTIVE" in name or (f'"key":"{identity}"'.encode() in data and data != before.get(name))
    assert saved.resume() == ExitCode.DONE
    assert ["b/y", "c/op-1"] == saved.ran


def test_after_rekey_the_audit_log_is_whole_and_the_one_before_is_kept(saved, capsys):
    main(["state", "rekey"])
    assert saved.resume() == ExitCode.DONE
    capsys.readouterr()

    assert main(["audit", "verify"]) == ExitCode.DONE

    main(["audit", "show"])
    assert "the state is sealed with key" in lines(capsys)[1]
    assert 1 == len(list((saved.project / ".sage" / "logs" / "aside").iterdir()))


def test_rekey_takes_a_named_key_and_one_that_was_in_use_before(saved, monkeypatch, tmp_path, own_home):
    old = own_home / ".config" / "sage-sandbox" / "state.key"
    old.rename(tmp_path / "old.key")
    monkeypatch.setenv("SAGE_STATE_KEY", KEY)

    assert main(["status", "f"]) == ExitCode.WRONG_KEY
    assert main(["state", "rekey", "--old-key-file", str(tmp_path / "old.key")]) == ExitCode.DONE

    assert main(["status", "f"]) == ExitCode.DONE
    assert main(["audit", "verify"]) == ExitCode.DONE
    assert not old.exists()


def test_rekey_accepts_what_its_user_put_back(saved, capsys):
    before = saved.tree()
    saved.resume()
    for path in saved.state().glob("workflow-f*/*"):
        path.unlink()
    for name, data in before.items():
        if name.startswith("workflow-f"):
            saved.state(name).write_bytes(data)
            saved.state(name).chmod(0o600)

    assert saved.resume() == ExitCode.STATE_CORRUPTED
    assert "rolled back" in capsys.readouterr().err
    assert main(["state", "rekey"]) == ExitCode.DONE

    assert saved.resume() == ExitCode.DONE
    assert ["b/y", "c/op-1"] == saved.ran


def test_rekey_waits_for_no_run_and_changes_nothing_beside_one(saved, own_home, capsys):
    key, before = (own_home / ".config" / "sage-sandbox" / "state.key").read_text(), saved.tree()
    with sage_folder(saved.project, "state") as folder, acquire(folder, lock_name("g"), wait_s=0):
        assert main(["state", "rekey"]) == ExitCode.LOCKED

    assert "g is being run" in capsys.readouterr().err
    assert (key, before) == ((own_home / ".config" / "sage-sandbox" / "state.key").read_text(), saved.tree())


# -- gc ----------------------------------------------------------------------------------------------------------------


def test_gc_removes_what_ended_long_ago_and_was_put_aside(saved, capsys):
    saved.main("run", "t.yaml", "g", "--restart")
    for path in saved.state("aside").iterdir():
        os.utime(path, (0, 0))
    capsys.readouterr()

    assert main(["state", "gc", "--older-than", "0d"]) == ExitCode.DONE

    assert {"removed g", "removed aside/g.1"} == set(lines(capsys))
    main(["list"])
    assert ["f"] == [line.split()[0] for line in lines(capsys)]
    assert saved.main("run", "t.yaml", "g") == ExitCode.DONE


def test_gc_keeps_what_is_younger_and_what_cannot_be_read(saved, capsys):
    saved.spoil("workflow-g.json")
    saved.spoil("workflow-g.json.bak")
    saved.spoil("workflow-g", "_definition.1.json")
    before = saved.tree()

    assert main(["state", "gc"]) == ExitCode.DONE
    assert main(["state", "gc", "--older-than", "12h"]) == ExitCode.DONE
    assert main(["state", "gc", "--older-than", "0d"]) == ExitCode.DONE

    out, err = capsys.readouterr()
    assert ("", "nothing is that old\n" * 3, before) == (out, err, saved.tree())


@pytest.mark.parametrize("age", ["old", "-1d", "d"])
def test_an_age_that_is_none_is_a_usage_error(saved, capsys, age):
    assert main(["state", "gc", f"--older-than={age}"]) == ExitCode.USAGE

    assert "--older-than" in capsys.readouterr().err


def test_results_of_many_phases_are_exported_in_the_order_of_the_template(world, capsys):
    world.write({"z": {}, **THREE})
    world.run()
    capsys.readouterr()

    main(["state", "export", "f"])

    assert {"z", "a", "b", "c"} == json.loads(capsys.readouterr().out)["checkpoints"].keys()
