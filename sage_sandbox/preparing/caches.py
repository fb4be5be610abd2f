"""The project's cache, for a run that may ask it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sage_sandbox.errors import SageError

if TYPE_CHECKING:
    from sage_sandbox.broker.runs import Keeping
    from sage_sandbox.journal import Journal
    from sage_sandbox.preparing.how import How
    from sage_sandbox.runner import Runner
    from sage_sandbox.workflow.definition import Workflow


def is_answered(how: How, template: str) -> bool:
    """Whether the last run of a template left an answer for every operation, as far as a hint can tell."""
    from sage_sandbox.caching.hints import is_whole
    from sage_sandbox.workflow.templates import find

    with suppress(SageError, OSError):
        return is_whole(how.project, find(template, how.project))
    return False


def ask_cache(how: How, journal: Journal, runner: Runner, workflow: Workflow) -> str:
    """Have a run ask the project's cache; what to say where there can be none: nothing hangs on it."""
    from sage_sandbox.caching.cache import Cache, cache_ttl
    from sage_sandbox.caching.hints import hint_of
    from sage_sandbox.disk.places import project_place
    from sage_sandbox.results.scrub import Scrubber, known_values
    from sage_sandbox.store.cache import CacheStore

    ttl_s = cache_ttl(how.env)
    if not how.cache:
        return ""
    try:
        place = project_place(how.project, how.env)
        try:
            store = CacheStore(how.project, place.id, place.folder, journal.keys)
        except BaseException:
            place.folder.close()
            raise
    except (OSError, SageError) as error:
        return f"there is no cache: {error}"
    cache = Cache(
        store,
        place.folder,
        journal.keys.cache_key(place.id),
        version=_version(),
        ttl_s=ttl_s,
        scrubber=Scrubber(known_values(how.env)),
    )
    with suppress(OSError):
        cache.whole = hint_of(Path(workflow.source))
    keeping = _keeping(journal, place.id, workflow, ttl_s, asks=how.ask_stale is not None)
    runner.cached_by(cache, keeping, how.ask_stale)
    return ""


def _keeping(journal: Journal, project_id: str, workflow: Workflow, ttl_s: float, *, asks: bool) -> Keeping | None:
    """How answers are kept: which operations ask for one first, or want none, their template says.

    None where no operation calls a tool or asks a model.
    """
    every = ((f"{phase.id}/{one.id}", one) for phase in workflow.phases for one in phase.operations)
    operations = [(name, one) for name, one in every if one.policy.tool or one.policy.model]
    if not operations:
        return None
    from sage_sandbox.broker.runs import Keeping

    first = {
        name: ttl_s if one.cache_ttl_s is None else one.cache_ttl_s
        for name, one in operations
        if one.type in ("mcp", "llm") and one.cache
    }
    never = tuple(name for name, one in operations if one.cache is False)
    return Keeping(journal.keys.answers_key(project_id).hex(), journal.keys.encrypt, ttl_s, first, never, asks)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sage-sandbox")
    except PackageNotFoundError:
        return "unknown"  # the files that run inside are a part of the key all the same
