"""Two operations that differ in anything that could make their outcomes differ never have one key."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.caching.keys import operation_key
from sage_sandbox.policy import Limits, Policy
from sage_sandbox.sandbox.job import Job

names = st.text(max_size=8)
tuples = st.lists(names, max_size=3).map(tuple)
policies = st.builds(Policy, read=tuples, write=tuples, write_through=tuples, loopback=st.booleans(), env=tuples)
limits = st.builds(Limits, memory=st.integers(1, 9), cpu_s=st.floats(1, 9), timeout_s=st.floats(1, 9))
jobs = st.builds(
    Job,
    type=st.sampled_from(["python", "command"]),
    code=names,
    file=names,
    files=st.lists(st.tuples(names, names), max_size=2).map(tuple),
    packages=tuples,
    argv=tuples,
    output=st.sampled_from(["text", "lines", "json"]),
    ok_codes=st.lists(st.integers(0, 3), max_size=2).map(tuple),
    params=st.binary(max_size=6),
    inputs=st.binary(max_size=6),
    policy=policies,
    limits=limits,
    env=st.lists(st.tuples(names, names), max_size=2).map(tuple),
    project=names,
    require_cgroup=st.booleans(),
)
asked = st.fixed_dictionaries(
    {
        "job": jobs,
        "shown": st.dictionaries(names, names, max_size=2),
        "software": st.lists(names, max_size=2),
        "version": names,
        "secret": st.binary(min_size=1, max_size=4),
        "ids": st.tuples(st.integers(0, 3), st.integers(0, 3)),
    }
)


@given(asked, asked)
def test_what_differs_in_anything_has_another_key(one, other):
    assert (one == other) == (operation_key(**one) == operation_key(**other))


@given(asked, st.data())
def test_what_differs_in_one_thing_only_has_another_key(one, data):
    other = data.draw(asked)
    name = data.draw(st.sampled_from([item.name for item in fields(Job)]))
    changed = {**one, "job": replace(one["job"], **{name: getattr(other["job"], name)})}
    part = data.draw(st.sampled_from(["shown", "software", "version", "secret", "ids"]))

    for differing in (changed, {**one, part: other[part]}):
        assert (one == differing) == (operation_key(**one) == operation_key(**differing))


@given(asked)
def test_what_belongs_to_one_run_is_no_part_of_the_key(one):
    job = one["job"]
    of_a_run = (("SAGE_ATTEMPT", "1"), ("SAGE_IDEMPOTENCY_KEY", "abc"))

    assert operation_key(**one) == operation_key(**{**one, "job": replace(job, env=job.env + of_a_run)})


def test_a_key_tells_nothing_without_the_secret():
    job = Job("python", params=b'"guessed"')
    given: dict[str, Any] = {"shown": {}, "software": [], "version": "1"}

    assert operation_key(job, secret=b"a", **given) != operation_key(job, secret=b"b", **given)
    assert len(operation_key(job, secret=b"a", **given)) == 64
