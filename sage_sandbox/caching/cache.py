"""The cache of a run: asked before an operation is sent to a slot, offered what it left.

Looking at files takes time, so it happens in a thread of its own; the run's thread puts questions, is woken, and takes
the answers. What is asked together is answered from one look at the files. An outcome is kept if a look taken after it
ended finds everything as the look did that was taken before it began.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from sage_sandbox.caching import programs
from sage_sandbox.caching.base import Question, Reply
from sage_sandbox.caching.index import Index
from sage_sandbox.caching.keys import operation_key
from sage_sandbox.caching.trees import Abandoned, TooLarge, Trees
from sage_sandbox.disk.files import Folder
from sage_sandbox.errors import SageError, UsageError
from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Outcome
from sage_sandbox.policy import parse_duration
from sage_sandbox.results.scrub import Scrubber
from sage_sandbox.sandbox.job import Job
from sage_sandbox.store.cache import TTL_DEFAULT_S, CacheStore
from sage_sandbox.store.records import decode_outcome, encode_outcome

JOIN_S: Final = 60.0
"""How long a run that ends waits until what it left is kept."""


@frozen
class _Offer:
    reply: Reply
    outcome: Outcome


def cache_ttl(environ: Mapping[str, str]) -> float:
    """Seconds: ``SAGE_CACHE_TTL`` (a number of milliseconds, or ``7d``), or 30 days. UsageError."""
    text = environ.get("SAGE_CACHE_TTL")
    try:
        return parse_duration(text) if text else TTL_DEFAULT_S
    except ValueError as error:
        raise UsageError(f"SAGE_CACHE_TTL: {error}", "set it to 7d, for instance") from error


def may_be_kept(outcome: Outcome) -> bool:
    """Whether an outcome may stand for another run of its operation.

    Not one that was rejected, whose files lie in a folder of its run, or that was given older answers. Not one
    in which secrets were replaced: which values are secret is not part of the key, so what is kept has to be as the
    operation said it.
    """
    whole = outcome.ok and outcome.level == "full" and not outcome.cached_answers
    return whole and not outcome.artifacts and not outcome.scrubbed


class Cache:
    """Begun by `start`, ended by `close`; in between, everything belongs to the thread of the run.

    ``user`` is the user's folder for the project and is closed at the end. ``scrubber`` knows what nothing may hold.
    ``whole`` is the mark that is left (`hints.hint_of`) if every operation that was asked about was
    answered or kept.
    """

    def __init__(
        self,
        store: CacheStore,
        user: Folder,
        secret: bytes,
        *,
        version: str,
        ttl_s: float = TTL_DEFAULT_S,
        scrubber: Scrubber | None = None,
    ) -> None:
        self.asked = 0
        self.hits = 0
        self.kept = 0
        self._found = 0
        self.whole: tuple[str, bytes] | None = None
        self._store = store
        self._user = user
        self._secret = secret
        self._version = version
        self._ttl_s = ttl_s
        self._scrubber = scrubber or Scrubber()
        self._queue: SimpleQueue[Question | _Offer | None] = SimpleQueue()
        self._replies: deque[Reply] = deque()
        self._notices: deque[str] = deque()
        self._said: set[str] = set()
        self._abandoned = False
        self._wake: Callable[[], None] = _nobody
        self._thread = threading.Thread(target=self._serve, name="sage-cache", daemon=True)

    # -- the thread of the run -----------------------------------------------------------------------------------

    def start(self, wake: Callable[[], None]) -> None:
        """Begin; ``wake`` is called whenever there is something to hear, from another thread."""
        self._wake = wake
        self._thread.start()

    def ask(self, questions: Iterable[Question]) -> None:
        """Put questions; each gets one reply."""
        for question in questions:
            self.asked += 1
            self._queue.put(question)

    def hear(self) -> list[Reply]:
        """The replies that came since."""
        replies = [self._replies.popleft() for _ in range(len(self._replies))]
        self.hits += sum(reply.outcome is not None for reply in replies)
        return replies

    def notices(self) -> list[str]:
        """What the user should know, each thing once."""
        return [self._notices.popleft() for _ in range(len(self._notices))]

    def offer(self, reply: Reply, outcome: Outcome) -> None:
        """Have the outcome of a run kept, if it may be, for whoever asks the same."""
        if reply.key and may_be_kept(outcome):
            self._queue.put(_Offer(reply, replace(outcome, attempts=())))

    def close(self, *, finish: bool) -> None:
        """End; with ``finish``, keep first what was offered. A second call does nothing."""
        self._abandoned = self._abandoned or not finish
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(JOIN_S)
        if not self._thread.is_alive():
            self._store.close()
            self._user.close()

    # -- the thread of the cache ---------------------------------------------------------------------------------

    def _serve(self) -> None:
        index = Index.load(self._user)
        trees = Trees(index, lambda: self._abandoned)
        ends = False
        while not ends:
            batch = self._next()
            ends = batch[-1] is None
            self._handle(batch, trees)
        with suppress(OSError, SageError):
            index.save(self._user)
        if not self._abandoned:
            self._trying(self._end)

    def _next(self) -> list[Question | _Offer | None]:
        """What waits, at least one; None comes last."""
        batch = [self._queue.get()]
        with suppress(Empty):
            while batch[-1] is not None:
                batch.append(self._queue.get_nowait())
        return batch

    def _handle(self, batch: Sequence[Question | _Offer | None], trees: Trees) -> None:
        """Answer and keep, by one look: whatever waits was asked, or had ended, before it is taken."""
        look = _Look(self, trees)
        for question in (item for item in batch if isinstance(item, Question)):
            self._replies.append(self._answer(question, look))
            self._wake()
        for offer in (item for item in batch if isinstance(item, _Offer)):
            if not self._abandoned and look.key(offer.reply.question.job) == offer.reply.key:
                self._trying(partial(self._put, offer))

    def _answer(self, question: Question, look: _Look) -> Reply:
        key = look.key(question.job)
        if not key:
            return Reply(question)
        found = self._store.get(key, self._ttl_s if question.ttl_s is None else question.ttl_s)
        if found is None:
            return Reply(question, None, key)
        try:
            outcome, _ = self._scrubber.outcome(decode_outcome(found.content, key))
        except (SageError, ValueError):
            return Reply(question, None, key)
        self._found += 1
        return Reply(question, replace(outcome, cached_s=found.age_s), key)

    def _put(self, offer: _Offer) -> None:
        self.kept += self._store.put(offer.reply.key, encode_outcome(offer.outcome))

    def _end(self) -> None:
        if self.whole is not None and self.asked == self._found + self.kept:
            self._store.mark_whole(*self.whole)
        self._store.evict()

    def _trying(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (OSError, SageError) as error:
            reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else error.message
            self._say("unwritable", f"the cache cannot be written: {reason}; the run goes on without it")

    def _say(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._notices.append(text)
            self._wake()


class _Look:
    """Everything that operations can see, as it was found at one time: each thing is looked at once."""

    def __init__(self, cache: Cache, trees: Trees) -> None:
        self._cache = cache
        self._trees = trees
        self._digests: dict[tuple[str, frozenset[str] | None], str] = {}
        self._software: list[object] | None = None

    def key(self, job: Job) -> str:
        """An operation's key; empty if what it can see cannot be told."""
        try:
            return operation_key(
                job,
                shown=self._shown(job),
                software=self._programs(job),
                version=self._cache._version,  # noqa: SLF001 - a look is a part of its cache
                secret=self._cache._secret,  # noqa: SLF001
            )
        except TooLarge as error:
            text = (
                f"{Path(str(error)).name} is too large to be digested: what reads it is never answered from the cache"
            )
            self._cache._say(f"too large {error}", text)  # noqa: SLF001
        except (OSError, SageError, Abandoned):
            pass  # what is not there, or refused, the sandbox says better
        except Exception as error:  # noqa: BLE001 - in a thread nobody would hear of it, and the run would wait for ever
            self._cache._say("broken", f"the cache cannot be asked: {type(error).__name__}: {error}")  # noqa: SLF001
        return ""

    def _shown(self, job: Job) -> dict[str, str]:
        policy = job.policy
        named = frozenset((*policy.read, *policy.write, *policy.write_through))
        shown = {path: self._digest(path, named) for path in sorted(named)}
        if job.packages:
            from sage_sandbox.sandbox.packages import binds  # what reads distributions takes long to load

            for outside, inside, _ in binds(job.packages):
                shown[inside] = self._digest(outside, None)
        return shown

    def _digest(self, path: str, named: frozenset[str] | None) -> str:
        """The digest of a granted path, or (``named`` is None) of a part of a package."""
        # Another grant matters only where it may name something that this one hides.
        inner = None if named is None else frozenset(other for other in named if other.startswith(f"{path}/"))
        if (path, inner) not in self._digests:
            masked = inner is not None
            self._digests[path, inner] = self._trees.digest(path, inner or frozenset(), masked=masked)
        return self._digests[path, inner]

    def _programs(self, job: Job) -> list[object]:
        if self._software is None:
            self._software = programs.system()
        return [*self._software, programs.program(job.argv[0], job.project) if job.argv else []]


def _nobody() -> None:
    """There is nobody to wake."""
