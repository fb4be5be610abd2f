"""One operation by itself: the library's Sandbox, in real sandboxes."""

from __future__ import annotations

import pytest

import sage_sandbox as sage


def test_a_command_gets_its_stdin_and_leaves_its_stdout(tmp_path):
    with sage.Sandbox(project=tmp_path) as box:
        outcome = box.run(["tr", "a-z", "A-Z"], stdin=b"loud")

    assert (True, "LOUD", "full") == (outcome.ok, outcome.value(), outcome.level)


def test_source_text_is_called_with_data(tmp_path):
    with sage.Sandbox(project=tmp_path) as box:
        outcome = box.call("def run(params, inputs):\n    return params['a'] + inputs['b']", {"a": 1}, inputs={"b": 2})

    assert 3 == outcome.value()


def test_the_policy_is_what_is_seen(tmp_path):
    (tmp_path / "shown").write_text("yes")
    (tmp_path / "kept").write_text("no")
    code = "import os\ndef run():\n    return sorted(os.listdir('.'))"
    with sage.Sandbox(sage.Policy(read=("shown",)), project=tmp_path) as box:
        assert ["shown"] == box.call(code).value()
    with sage.Sandbox(project=tmp_path) as box:
        assert [] == box.call(code).value()


def test_what_is_never_granted_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(sage.UsageError):
        sage.Sandbox(sage.Policy(write=("/etc",)), project=tmp_path)
    with sage.Sandbox(project=tmp_path) as box, pytest.raises(sage.UsageError, match="no command was given"):
        box.run([])


def test_a_closed_sandbox_starts_anew(tmp_path):
    box = sage.Sandbox(project=tmp_path)
    first = box.call("def run():\n    return 1")
    box.close()
    box.close()
    again = box.call("def run():\n    return 2", limits=sage.Limits(memory=64 << 20))
    box.close()

    assert [1, 2] == [first.value(), again.value()]
    assert first.capabilities == again.capabilities


def test_a_limit_is_an_outcome(tmp_path):
    with sage.Sandbox(project=tmp_path) as box:
        outcome = box.run(["sleep", "30"], limits=sage.Limits(timeout_s=0.2))

    assert ("timeout", "timeout 200 ms exceeded") == (outcome.reason, outcome.error)
