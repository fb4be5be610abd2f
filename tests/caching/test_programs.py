"""What can be run besides what was granted has an identity that an installation changes."""

from __future__ import annotations

import json
from typing import Any

from sage_sandbox.caching import programs


def test_the_software_is_plain_data_and_stays_the_same():
    assert json.dumps(programs.system()) == json.dumps(programs.system())


def test_a_program_that_was_exchanged_is_another(tmp_path):
    (tmp_path / "tool").write_text("1")
    before = programs.program("./tool", str(tmp_path))

    (tmp_path / "new").write_text("1")
    (tmp_path / "new").replace(tmp_path / "tool")

    assert before != programs.program("./tool", str(tmp_path))


def test_a_program_is_looked_for_where_the_sandbox_does(tmp_path):
    found: list[Any] = programs.program("sh", str(tmp_path))
    missing: list[Any] = programs.program("no-such-program", str(tmp_path))

    assert 3 == len(found)
    assert any(stamp for _, (_, stamp) in found)
    assert [None] * 3 == [stamp for _, (_, stamp) in missing]


def test_a_new_folder_among_the_libraries_is_seen(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(programs, "DEEP", (str(tmp_path / "lib"), str(tmp_path / "missing")))
    before = programs.system()

    (tmp_path / "lib" / "libnew").mkdir()

    assert before != programs.system()
