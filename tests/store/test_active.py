"""The list of what runs: for people, written by anybody, believed by nobody."""

from __future__ import annotations

import json

import pytest

from sage_sandbox.store import active
from sage_sandbox.store.layout import lock_name, state_folder


@pytest.fixture
def folder(stored):
    with state_folder(stored.project) as opened:
        yield opened


def write(folder, workflows):
    folder.write_new(active.FILE, json.dumps({"workflows": workflows}).encode())


def test_a_run_that_holds_its_lock_is_listed_and_one_that_was_killed_is_not(stored, folder):
    write(folder, [{"feature": "f", "pid": 1}, {"feature": "gone", "pid": 2}])

    assert {} == active.listed(folder)
    with stored.opened():
        assert {"f": {"feature": "f", "pid": 1}} == active.listed(folder)


@pytest.mark.parametrize("feature", [None, 3, ["f"], {"f": 1}, "", "../f", "f/../f", "f\0", "F." * 200])
def test_an_entry_whose_feature_is_none_is_passed_over(stored, folder, feature):
    write(folder, [{"feature": feature}, {"pid": 1}, "f", {"feature": "f", "deep": [1], "phase": "a"}])

    with stored.opened():
        assert {"f": {"feature": "f", "phase": "a"}} == active.listed(folder)


def test_an_entry_whose_lock_cannot_be_looked_at_is_passed_over(stored, folder):
    write(folder, [{"feature": "f"}, {"feature": "planted"}])
    (stored.state / lock_name("planted")).symlink_to(stored.path("main"))

    with stored.opened():
        assert {"f"} == active.listed(folder).keys()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"workflows": 3}', b"[" * 90_000])
def test_a_list_that_is_none_is_an_empty_one(folder, data):
    folder.write_new(active.FILE, data)

    assert {} == active.listed(folder)
