"""The thread that answers: every question gets its reply, whatever goes wrong; what changed meanwhile is not kept."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from sage_sandbox.caching.base import Question, may_be_cached
from sage_sandbox.caching.cache import Cache, cache_ttl, may_be_kept
from sage_sandbox.disk.places import project_place
from sage_sandbox.errors import UsageError
from sage_sandbox.outcome import Artifact, CachedAnswer, Outcome, rejected
from sage_sandbox.policy import Policy
from sage_sandbox.sandbox.job import Job
from sage_sandbox.store.cache import CacheStore
from sage_sandbox.store.keys import Keys

DONE = Outcome("fulfilled", result=b"1", level="full")


class Talk:
    """One process's cache of a project, asked one thing at a time."""

    def __init__(self, project):
        place = project_place(project)
        self.store = CacheStore(project, place.id, place.folder, Keys([b"k" * 32]))
        self.cache = Cache(self.store, place.folder, b"secret", version="1")
        self._woken = threading.Event()
        self.cache.start(self._woken.set)

    def ask(self, job, **given):
        self.cache.ask([Question("about", job, **given)])
        while not (replies := self.cache.hear()):
            assert self._woken.wait(30)
            self._woken.clear()
        return replies[0]


@pytest.fixture
def project(tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "a.txt").write_text("a")
    return tmp_path / "project"


@pytest.fixture
def talk(project):
    talks = []

    def make():
        talks.append(Talk(project))
        return talks[-1]

    yield make
    for item in talks:
        item.cache.close(finish=False)


def job(project, **fields: Any) -> Job:
    return Job("python", code="ok", project=str(project), policy=Policy(read=(str(project),)), **fields)


def test_what_was_kept_answers_the_same_question(project, talk):
    first = talk()
    reply = first.ask(job(project))
    assert (None, 64) == (reply.outcome, len(reply.key))
    first.cache.offer(reply, DONE)
    first.cache.close(finish=True)

    second = talk()
    found = second.ask(job(project)).outcome

    assert found is not None
    assert found.cached_s is not None
    assert b"1" == found.result
    assert second.ask(job(project, params=b"1")).outcome is None
    assert (2, 1) == (second.cache.asked, second.cache.hits)


def test_what_changed_while_it_ran_is_not_kept(project, talk):
    first = talk()
    reply = first.ask(job(project))
    (project / "a.txt").write_text("b")
    first.cache.offer(reply, DONE)
    first.cache.close(finish=True)

    assert talk().ask(job(project)).outcome is None
    (project / "a.txt").write_text("a")
    assert talk().ask(job(project)).outcome is None


def test_an_end_that_nobody_waits_for_keeps_nothing(project, talk):
    first = talk()
    reply = first.ask(job(project))
    first.cache.close(finish=False)
    first.cache.offer(reply, DONE)

    assert talk().ask(job(project)).outcome is None


def test_what_cannot_be_looked_at_is_run_and_never_kept(project, talk):
    first = talk()
    gone = Job("python", project=str(project), policy=Policy(read=(f"{project}/nothing",)))

    assert ("", None) == (first.ask(gone).key, first.ask(gone).outcome)
    assert [] == first.cache.notices()


def test_what_is_too_large_is_said_once(project, talk, monkeypatch):
    monkeypatch.setattr("sage_sandbox.caching.trees.Trees.digest", too_large)
    first = talk()

    assert "" == first.ask(job(project)).key
    assert "" == first.ask(job(project)).key
    assert ["project is too large to be digested: what reads it is never answered from the cache"] == [
        *first.cache.notices(),
        *first.cache.notices(),
    ]


def too_large(trees, root, *_, **__):
    from sage_sandbox.caching.trees import TooLarge

    raise TooLarge(root)


def test_a_mistake_of_ours_is_said_and_the_operation_runs(project, talk, monkeypatch):
    monkeypatch.setattr("sage_sandbox.caching.programs.system", lambda: 1 / 0)
    first = talk()

    assert "" == first.ask(job(project)).key
    assert "ZeroDivisionError" in first.cache.notices()[0]


def test_an_answer_that_is_no_outcome_is_none(project, talk):
    first = talk()
    reply = first.ask(job(project))
    first.store.put(reply.key, b'{"something":"else"}')

    assert first.ask(job(project)).outcome is None


def test_a_cache_that_cannot_be_written_says_so_once(project, talk, monkeypatch):
    first = talk()
    monkeypatch.setattr(first.store, "put", no_space)
    for code in ("1", "2"):
        reply = first.ask(job(project, params=code.encode()))
        first.cache.offer(reply, DONE)
    first.cache.close(finish=True)

    assert ["the cache cannot be written: no space left on device; the run goes on without it"] == (
        first.cache.notices()
    )


def no_space(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("policy", "asked", "may"),
    [
        (Policy(), None, True),
        (Policy(read=("/a",), env=("A",), loopback=True), None, True),
        (Policy(write=("/a",)), None, False),
        (Policy(write_through=("/a",)), None, False),
        (Policy(net=("a:1",)), None, False),
        (Policy(tool=("a/b",)), None, False),
        (Policy(write=("/a",)), True, True),
        (Policy(), False, False),
    ],
)
def test_what_reaches_out_is_asked_for_only_where_its_template_says_so(policy, asked, may):
    assert may == may_be_cached("python", policy, asked)
    assert not may_be_cached("mcp", policy, asked)  # the broker keeps what tools say


@pytest.mark.parametrize(
    "outcome",
    [
        rejected("error", "no"),
        Outcome("fulfilled", level="none"),
        Outcome("fulfilled", level="full", artifacts=(Artifact("a", 1, "0"),)),
        Outcome("fulfilled", level="full", scrubbed=1),
        Outcome("fulfilled", level="full", cached_answers=(CachedAnswer("a/b", 1.0, unavailable=True),)),
    ],
)
def test_not_every_outcome_stands_for_another_run(outcome):
    assert may_be_kept(DONE)
    assert not may_be_kept(outcome)


def test_how_old_an_answer_may_be():
    assert 30 * 86400 == cache_ttl({})
    assert 7 * 86400 == cache_ttl({"SAGE_CACHE_TTL": "7d"})
    assert 1.5 == cache_ttl({"SAGE_CACHE_TTL": "1500"})
    with pytest.raises(UsageError):
        cache_ttl({"SAGE_CACHE_TTL": "soon"})
