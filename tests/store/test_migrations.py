"""Older records become today's, newer ones are refused."""

from __future__ import annotations

import pytest

from sage_sandbox.errors import StateCorrupted, StateTooNew
from sage_sandbox.store.migrations import MIGRATIONS, upgrade


def rename_phase(record):
    return {
        **{name: value for name, value in record.items() if name != "phase"},
        "version": "2.0",
        "at": record["phase"],
    }


def count_phases(record):
    return {**record, "version": "3.0", "count": len(record["at"])}


TWO_STEPS = {"state": (rename_phase, count_phases), "checkpoint": ()}


@pytest.mark.parametrize("kind", ["state", "definition", "checkpoint"])
@pytest.mark.parametrize("version", ["1.0", "1.7", "1.999999"])
def test_record_of_this_major_version_is_left_as_it_is(kind, version):
    record = {"version": version, "unknown": [1]}

    assert record is upgrade(kind, record)


def test_first_version_needs_no_migration():
    assert {"state": (), "definition": (), "checkpoint": ()} == MIGRATIONS


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"version": "1.0", "phase": "abc"}, {"version": "3.0", "at": "abc", "count": 3}),
        ({"version": "1.4", "phase": "abc"}, {"version": "3.0", "at": "abc", "count": 3}),
        ({"version": "2.0", "at": "ab"}, {"version": "3.0", "at": "ab", "count": 2}),
        ({"version": "3.5", "at": "ab", "count": 9}, {"version": "3.5", "at": "ab", "count": 9}),
    ],
)
def test_older_record_goes_through_every_later_migration_in_order(record, expected):
    assert expected == upgrade("state", record, TWO_STEPS)


def test_kinds_have_versions_of_their_own():
    with pytest.raises(StateTooNew):
        upgrade("checkpoint", {"version": "2.0"}, TWO_STEPS)


def test_migration_leaves_the_old_record_alone():
    record = {"version": "1.0", "phase": "abc"}

    upgrade("state", record, TWO_STEPS)

    assert {"version": "1.0", "phase": "abc"} == record


@pytest.mark.parametrize("version", ["2.0", "2.1", "10.0", "999999.0"])
def test_newer_major_version_is_refused_and_named(version):
    with pytest.raises(StateTooNew) as refused:
        upgrade("state", {"version": version})

    assert f"the state was written by a later version (records {version})" == refused.value.message
    assert "update sage-sandbox" == refused.value.hint


@pytest.mark.parametrize(
    "record",
    [
        {},
        *(
            {"version": version}
            for version in [None, 1, 1.0, True, ["1.0"], "", "1", "1.", ".1", "0.9", "01.0", "1.00"]
        ),
        *(
            {"version": version}
            for version in ["1.0.0", "1.0\n", " 1.0", "-1.0", "v1.0", "1.x", "\u0661.0", "1" * 5000]
        ),
    ],
)
def test_version_that_is_none_is_damage(record):
    with pytest.raises(StateCorrupted, match="the state has no version that this program knows"):
        upgrade("state", record)
