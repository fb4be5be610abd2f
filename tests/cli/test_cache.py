"""``sage-sandbox cache``: what it prints, and what is left."""

from __future__ import annotations

import json

import pytest

from sage_sandbox.cli.main import main
from sage_sandbox.disk.places import project_place
from sage_sandbox.store.cache import CacheStore
from sage_sandbox.store.keys import Keys


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A project with two kept outcomes, as the working directory."""
    monkeypatch.chdir(tmp_path)
    place = project_place(tmp_path)
    store = CacheStore(tmp_path, place.id, place.folder, Keys([b"k" * 32]))
    for key in ("1" * 64, "2" * 64):
        store.put(key, b'{"a":1}')
    yield store
    store.close()
    place.folder.close()


def test_stats_say_how_many_how_large_and_how_old(kept, capsys):
    assert main(["cache", "stats"]) == 0

    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("2 outcomes, ")
    assert first.endswith(" of 256 MiB at most")
    assert second.endswith("ago; worth nothing after 720 h")


def test_stats_are_a_document_too(kept, capsys):
    assert main(["cache", "stats", "--json"]) == 0

    document = json.loads(capsys.readouterr().out)
    assert {"entries", "answers", "size", "oldestMs", "newestMs", "sizeMax", "ttlMs"} == document.keys()
    assert (2, 256 << 20, 30 * 86400000) == (document["entries"], document["sizeMax"], document["ttlMs"])


def test_clear_takes_everything_away(kept, capsys):
    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "✓ 2 entries are gone\n"

    assert main(["cache", "clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": 0}
    assert main(["cache", "stats"]) == 0
    assert capsys.readouterr().out == "0 outcomes, 0 B of 256 MiB at most\n"


def test_where_nothing_ran_there_is_nothing_and_nothing_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert main(["cache", "stats"]) == 0
    assert main(["cache", "clear"]) == 0

    assert not (tmp_path / ".sage").exists()


def test_a_wrong_age_is_a_usage_error(kept, monkeypatch, capsys):
    monkeypatch.setenv("SAGE_CACHE_TTL", "soon")

    assert main(["cache", "stats"]) == 2
    assert "SAGE_CACHE_TTL" in capsys.readouterr().err
