"""From a template's name, or a run that stopped, to a run: read, approved, locked, started without waiting."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sage_sandbox.errors import Locked, NoSuchPhase, NoSuchRun, NotGranted, SageError, Unfinished, UsageError
from sage_sandbox.escaping import clip
from sage_sandbox.policy import Grant, parse_duration, parse_grant
from sage_sandbox.runner import FEATURE, Runner, parallel_limit, warm
from sage_sandbox.workflow.definition import AskedLimits, Template, Workflow

if TYPE_CHECKING:
    from sage_sandbox.brokering import Needs
    from sage_sandbox.document import RunResult
    from sage_sandbox.events import Observer
    from sage_sandbox.grants.asking import Asker
    from sage_sandbox.grants.asking_servers import ServerAsker
    from sage_sandbox.grants.review import Review
    from sage_sandbox.journal import Journal, Kept
    from sage_sandbox.store.reading import Found
    from sage_sandbox.store.records import Definition
    from sage_sandbox.workflow.loading import Report

FEATURE_MAX: Final = 64
ACTIVE_WIDTH: Final = 1000
REQUIREMENTS: Final = ("memory=cgroup",)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run that is ready: its workers are starting. ``notices`` are for the user to read. `Runner.run` ends it all.

    ``kept`` says what a resume does not repeat; None where nothing ran before.
    """

    workflow: Workflow
    runner: Runner
    notices: tuple[str, ...] = ()
    kept: Kept | None = None
    journal: Journal | None = None


@dataclass(frozen=True, slots=True)
class How:
    """How a run is to run, whatever it is: what `run` and `resume` have in common.

    ``environ`` is where keys and the values of granted names are read. ``ask_passphrase`` is asked where no key can be
    kept; ``ask`` for grants that are missing, ``ask_server`` for tool servers that are not approved. ``within`` is the
    most that may be granted, whatever the user allowed; None sets no such bound. Without ``cache`` everything runs, and
    nothing is kept for other runs.
    """

    project: Path
    allow: tuple[Grant, ...] = ()
    within: tuple[Grant, ...] | None = None
    parallel: int | None = None
    sequential: bool = False
    timeout_s: float | None = None
    require: frozenset[str] = frozenset()
    observers: tuple[Observer, ...] = ()
    ask: Asker | None = None
    ask_server: ServerAsker | None = None
    ask_passphrase: Callable[[], str] | None = None
    environ: Mapping[str, str] | None = None
    cache: bool = True

    @property
    def slots(self) -> int:
        """How many operations at once."""
        return 1 if self.sequential else self.parallel or parallel_limit(self.env)

    @property
    def env(self) -> Mapping[str, str]:
        """The environment that was given, else this process's."""
        return os.environ if self.environ is None else self.environ


def run(
    template: str | os.PathLike[str],
    feature: str | None = None,
    *,
    project: str | os.PathLike[str] = ".",
    params: Mapping[str, Any] | None = None,
    allow: Iterable[str | Grant] = (),
    limits: Iterable[str] | AskedLimits = (),
    parallel: int | None = None,
    sequential: bool = False,
    timeout: float | str | None = None,
    require: Iterable[str] = (),
    observers: Iterable[Observer] = (),
    state: bool = True,
    restart: bool = False,
    cache: bool = True,
) -> RunResult:
    """Run a template (a path, or a name in the project's ``.sage/templates``) and wait for how it ends.

    ``allow`` and ``limits`` read as on the command line: ``["read:src"]``, ``["memory=1G"]``. Nobody is asked: what is
    neither allowed here nor remembered raises NotGranted. ``timeout`` is a number of milliseconds, or ``"10m"``. What
    an operation did wrong is in the result, not raised. Every phase that ends is saved, unless ``state`` is false;
    ``restart`` puts aside what an unfinished run of the feature left. Without ``cache`` no operation is answered from
    what an earlier run kept, and nothing is kept; where there is no state there is no cache either.
    """
    how = _how(project, allow, parallel, sequential, timeout, require, observers, cache)
    return prepare(template, feature, how, params=params, limits=limits, state=state, restart=restart).runner.run()


def resume(
    feature: str,
    *,
    project: str | os.PathLike[str] = ".",
    from_phase: str | None = None,
    update: bool = False,
    allow: Iterable[str | Grant] = (),
    parallel: int | None = None,
    sequential: bool = False,
    timeout: float | str | None = None,
    require: Iterable[str] = (),
    observers: Iterable[Observer] = (),
    cache: bool = True,
) -> RunResult:
    """Go on with a run that was stopped or killed, and wait for how it ends. Raises NoSuchRun, Locked, StateCorrupted.

    ``from_phase`` runs that phase again and all that follow from it; ``update`` takes the template as it is now.
    """
    how = _how(project, allow, parallel, sequential, timeout, require, observers, cache)
    return prepare_resume(feature, how, from_phase=from_phase, update=update).runner.run()


def prepare(
    template: str | os.PathLike[str],
    feature: str | None,
    how: How,
    *,
    params: Mapping[str, Any] | None = None,
    limits: Iterable[str] | AskedLimits = (),
    state: bool = True,
    restart: bool = False,
    digest: str = "",
) -> Prepared:
    """Get a run ready up to its first operation: as `run`, but ``how`` may name somebody to ask.

    ``digest``, if given, is what the template's must be.
    """
    _check(how)
    if feature is not None:
        check_feature(feature)
    with _warmed(how, os.fspath(template) if state else "") as start:
        from sage_sandbox.workflow.loading import load
        from sage_sandbox.workflow.parameters import resolve_params
        from sage_sandbox.workflow.templates import find

        workflow = load(find(os.fspath(template), how.project))
        _same_template(workflow, digest)
        feature = feature or slug(workflow.name)
        journal, notice = _open_journal(how, feature) if state else (None, "")
        with _closing(journal):
            if journal is not None and not restart:
                _refuse_unfinished(journal)
            values = resolve_params(workflow, _typed(params or {}))
            overrides = _overrides(limits)
            review, needs = _approve(workflow, how.allow, how)
            runner = start(workflow, feature, values, overrides, review, needs, how.timeout_s)
            definition = None
            if journal is not None:
                definition = _definition(workflow, values, overrides, review, how.timeout_s, how.env)
                journal.begin(definition, workflow)
                runner.saved_by(journal)
                notice = "; ".join(_said(notice, _ask_cache(how, journal, runner, workflow)))
            return Prepared(workflow, runner, _said(notice, *review.notices, _lacking(definition)), journal=journal)


def prepare_resume(
    feature: str, how: How, *, from_phase: str | None = None, update: bool = False, digest: str = ""
) -> Prepared:
    """Get a run ready to go on: as `resume`, but ``how`` may name somebody to ask; ``digest`` as for `prepare`."""
    _check(how)
    check_feature(feature)
    _require_state(how.project, feature)
    with _warmed(how) as start:
        from sage_sandbox.journal import weigh

        journal, notice = _open_journal(how, feature)
        with _closing(journal):
            found = journal.read()
            definition = found.definition
            stored = _stored_workflow(definition)
            workflow, values = _updated(definition, stored) if update else (stored, definition.params)
            _same_template(workflow, digest)
            aside = _aside(found, stored, workflow, values, from_phase)
            review, needs = _approve(workflow, _allowed(definition, how), how)
            overrides = AskedLimits(**_known_limits(definition))
            timeout_s = definition.timeout_s if how.timeout_s is None else how.timeout_s
            kept = weigh(found, workflow, aside)
            runner = start(workflow, feature, values, overrides, review, needs, timeout_s, kept)
            changed = [] if update else _changes(definition)
            notices = _said(notice, *_repairs(found), *changed, *review.notices)
            if found.state.status == "completed" and workflow.digest == definition.digest and not kept.again:
                journal.close()
                runner.workflow_id = found.state.run
                return Prepared(workflow, runner, notices, kept)
            fresh = _definition(workflow, values, overrides, review, timeout_s, how.env) if update else None
            journal.go_on(found, workflow, aside, fresh)
            runner.saved_by(journal)
            uncached = _ask_cache(how, journal, runner, workflow)
            return Prepared(workflow, runner, _said(*notices, _lacking(fresh), uncached), kept, journal)


# -- for those who may name things and point at nothing ------------------------------------------------------------


def named_template(name: str, project: Path) -> Path:
    """The file of a template by its name; UsageError, with the names that there are, for a path or if there is none."""
    from sage_sandbox.workflow.templates import find_named

    return find_named(name, project)


def template_names(project: Path) -> list[str]:
    """The names that `named_template` knows."""
    from sage_sandbox.workflow.templates import names

    return names(project)


def inspect_template(template: str | Mapping[str, Any], project: Path) -> Report:
    """Everything that is wrong with a template by its name, or with a definition as plain data; UsageError."""
    from sage_sandbox.workflow.loading import inspect, inspect_text

    if isinstance(template, str):
        return inspect(named_template(template, project))
    return inspect_text(json.dumps(template), "json", "definition")


# -- in a process of its own ---------------------------------------------------------------------------------------


def run_request(
    template: str | os.PathLike[str],
    feature: str | None,
    how: How,
    *,
    params: Mapping[str, Any] | None = None,
    limits: Iterable[str] | AskedLimits = (),
    restart: bool = False,
) -> dict[str, Any]:
    """Settle everything that may be asked or refused; what `run_detached` needs to do the rest elsewhere, as JSON.

    It holds keys and the values of granted environment names: it is for a pipe, not for a command line.
    """
    from sage_sandbox.workflow.loading import load
    from sage_sandbox.workflow.parameters import resolve_params
    from sage_sandbox.workflow.templates import find

    _check(how)
    path = find(os.fspath(template), how.project)
    workflow = load(path)
    feature = feature or slug(workflow.name)
    check_feature(feature)
    how, passphrase = _remembering_passphrase(how)
    journal, _ = _open_journal(how, feature)
    with _closing(journal):
        if not restart:
            _refuse_unfinished(journal)
        typed = _typed(params or {})
        resolve_params(workflow, typed)
        review, needs = _approve(workflow, how.allow, how)
    journal.close()
    return {
        **_request(how, feature, review, needs, passphrase),
        "verb": "run",
        "template": os.path.abspath(path),  # noqa: PTH100 - links in it are the user's own words
        "digest": workflow.digest,
        "params": typed,
        "limits": asdict(_overrides(limits)),
        "restart": restart,
    }


def resume_request(feature: str, how: How, *, from_phase: str | None = None, update: bool = False) -> dict[str, Any]:
    """As `run_request`, for `resume`."""
    _check(how)
    check_feature(feature)
    _require_state(how.project, feature)
    how, passphrase = _remembering_passphrase(how)
    journal, _ = _open_journal(how, feature)
    with _closing(journal):
        found = journal.read()
        stored = _stored_workflow(found.definition)
        workflow, values = _updated(found.definition, stored) if update else (stored, found.definition.params)
        _aside(found, stored, workflow, values, from_phase)
        review, needs = _approve(workflow, _allowed(found.definition, how), how)
    journal.close()
    return {
        **_request(how, feature, review, needs, passphrase),
        "verb": "resume",
        "digest": workflow.digest,
        "from_phase": from_phase,
        "update": update,
    }


def run_detached(request: Mapping[str, Any], ready: Callable[[dict[str, Any]], None]) -> int:
    """Do what a request says, in this process; ``ready`` is told once the lock is held and the first state durable."""
    from sage_sandbox.observe.progress import Progress
    from sage_sandbox.signals import cancelled_by_signals

    how = How(
        project=Path(request["project"]),
        allow=tuple(parse_grant(text) for text in request["grants"]),
        parallel=request["parallel"],
        sequential=request["sequential"],
        timeout_s=request["timeout_s"],
        require=frozenset(request["require"]),
        observers=(Progress(),),
        environ={**os.environ, **request["environ"]},
        cache=request["cache"],
    )
    feature = request["feature"]
    if request["verb"] == "run":
        limits = AskedLimits(**request["limits"])
        prepared = prepare(
            request["template"],
            feature,
            how,
            params=request["params"],
            limits=limits,
            restart=request["restart"],
            digest=request["digest"],
        )
    else:
        prepared = prepare_resume(
            feature, how, from_phase=request["from_phase"], update=request["update"], digest=request["digest"]
        )
    ready({"feature": feature, "workflowId": prepared.runner.workflow_id, "status": "running", "pid": os.getpid()})
    with cancelled_by_signals(prepared.runner.cancel):
        return int(prepared.runner.run().exit_code)


def _request(
    how: How, feature: str, review: Review, needs: Needs | None, passphrase: Mapping[str, str]
) -> dict[str, Any]:
    from sage_sandbox.policy import SECRET_NAMES

    names = {*SECRET_NAMES, *(name for policy in review.policies.values() for name in policy.env)}
    names |= needs.values.keys() if needs is not None else set()
    given = {name: how.env[name] for name in sorted(names) if name in how.env}
    return {
        "project": str(how.project),
        "feature": feature,
        "grants": [str(grant) for grant in review.held],
        "parallel": how.parallel,
        "sequential": how.sequential,
        "timeout_s": how.timeout_s,
        "require": sorted(how.require),
        "cache": how.cache,
        "environ": {**given, **passphrase},
    }


def _remembering_passphrase(how: How) -> tuple[How, dict[str, str]]:
    """The same, and the passphrase once one was typed, as a variable: the new process has nobody to ask."""
    typed: dict[str, str] = {}
    ask = how.ask_passphrase
    if ask is None:
        return how, typed

    def remember() -> str:
        typed["SAGE_STATE_PASSPHRASE"] = ask()
        return typed["SAGE_STATE_PASSPHRASE"]

    return replace(how, ask_passphrase=remember), typed


def _same_template(workflow: Workflow, digest: str) -> None:
    if digest and workflow.digest != digest:
        raise UsageError("the template changed while the run was being started", "start it again")


# -- the steps of both ---------------------------------------------------------------------------------------------


Start = Callable[..., Runner]


@contextmanager
def _warmed(how: How, template: str = "") -> Iterator[Start]:
    """Start workers first: they come up while pydantic is loaded and the template is read.

    Where the last run of the ``template`` left an answer for everything, most likely none is needed: then the first
    operation without one starts them.
    """
    answered = how.cache and template != "" and _is_answered(how, template)
    dispatcher = warm(str(how.project), parallel=how.slots, slots=0 if answered else 1, environ=how.env)

    def start(
        workflow: Workflow,
        feature: str,
        values: Mapping[str, Any],
        overrides: AskedLimits,
        review: Review,
        needs: Needs | None,
        timeout_s: float | None,
        kept: Kept | None = None,
    ) -> Runner:
        from sage_sandbox.grants.limits import machine_ceilings, workflow_limits

        _check_place(how.project, feature)
        return Runner(
            workflow,
            feature=feature,
            params=values,
            policies=review.policies,
            limits=workflow_limits(workflow, overrides, machine_ceilings()),
            project=str(how.project),
            parallel=how.slots,
            sequential=how.sequential,
            timeout_s=timeout_s,
            observers=how.observers,
            artifacts=True,
            require_cgroup="memory=cgroup" in how.require,
            dispatcher=dispatcher,
            earlier=kept.earlier if kept is not None else None,
            needs=needs,
            environ=how.env,
        )

    try:
        yield start
    except BaseException:
        dispatcher.close()
        raise


@contextmanager
def _closing(journal: Journal | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if journal is not None:
            journal.close()
        raise


def _how(
    project: str | os.PathLike[str],
    allow: Iterable[str | Grant],
    parallel: int | None,
    sequential: bool,
    timeout: float | str | None,
    require: Iterable[str],
    observers: Iterable[Observer],
    cache: bool,
) -> How:
    return How(
        project=Path(os.path.realpath(project)),
        allow=tuple(parse_grant(grant) if isinstance(grant, str) else grant for grant in allow),
        parallel=parallel,
        sequential=sequential,
        timeout_s=None if timeout is None else _seconds(timeout),
        require=frozenset(require),
        observers=tuple(observers),
        cache=cache,
    )


def _check(how: How) -> None:
    if unknown := how.require - set(REQUIREMENTS):
        raise UsageError(f"{min(unknown)!r} is nothing that can be required", f"one of {', '.join(REQUIREMENTS)}")


def _open_journal(how: How, feature: str) -> tuple[Journal, str]:
    """Take the feature's lock; what opens and seals its state."""
    from sage_sandbox.disk.places import project_place
    from sage_sandbox.journal import Journal
    from sage_sandbox.results.scrub import known_values
    from sage_sandbox.store.opening import open_keys

    _check_place(how.project, feature)
    place = project_place(how.project, how.env)
    try:
        keys = open_keys(how.env, place, ask_passphrase=how.ask_passphrase)
    except BaseException:
        place.folder.close()
        raise
    try:
        return Journal.open(how.project, place, feature, keys, known_values(how.env))
    except Locked as error:
        raise Locked(error.message, "; ".join(_said(error.hint, _active(how.project))), error.owner) from error


def _is_answered(how: How, template: str) -> bool:
    from sage_sandbox.caching.hints import is_whole
    from sage_sandbox.workflow.templates import find

    with suppress(SageError, OSError):
        return is_whole(how.project, find(template, how.project))
    return False


def _ask_cache(how: How, journal: Journal, runner: Runner, workflow: Workflow) -> str:
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
    runner.cached_by(cache)
    return ""


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sage-sandbox")
    except PackageNotFoundError:
        return "unknown"  # the files that run inside are a part of the key all the same


def _active(project: Path) -> str:
    """What runs in a project, for people."""
    from sage_sandbox.store.active import listed
    from sage_sandbox.store.layout import state_folder

    with state_folder(project) as folder:
        entries = listed(folder)
    known = (f"{name} ({entry.get('template')}, since {entry.get('startedAt')})" for name, entry in entries.items())
    return f"running here: {clip(', '.join(known), ACTIVE_WIDTH)}" if entries else ""


def _refuse_unfinished(journal: Journal) -> None:
    """UsageError if the feature has a run that could be gone on with; a damaged one is an error of its own."""
    try:
        state = journal.read().state
    except NoSuchRun:
        return
    if state.status != "completed":
        done = f"{state.progress['completed']} of {state.progress['total']} phases are done"
        status = "was interrupted" if state.status == "running" else f"is {state.status}"
        raise Unfinished(
            f"{state.feature} {status}: {done}",
            f"go on with: sage-sandbox resume {state.feature}; or start anew with --restart",
        )


def _approve(workflow: Workflow, allow: Sequence[Grant], how: How) -> tuple[Review, Needs | None]:
    """What every operation may touch, and the tool servers it takes, each approved: what was shown is what is used."""
    from sage_sandbox.grants.approval import approve
    from sage_sandbox.grants.memory import Memory

    review = approve(workflow, allow, how.project, memory=Memory.of_user(how.env), ask=how.ask)
    if how.within is not None:
        _require_within(workflow, how.within, how.project)
    grants = {"/".join(key): policy.tool for key, policy in review.policies.items() if policy.tool}
    if not grants:
        return review, None
    needs, notices = _needs(grants, how)
    return replace(review, notices=(*review.notices, *notices)), needs


def _require_within(workflow: Workflow, within: Sequence[Grant], project: Path) -> None:
    """NotGranted, with nothing missing that the user could add, if the workflow needs more than this."""
    from sage_sandbox.grants.review import review

    seen = review(workflow, within, project)
    if not seen.complete:
        needed = ", ".join(str(grant) for grant in seen.missing) or "; ".join(seen.problems)
        raise NotGranted(f"the workflow needs more than this call allows: {needed}", "name it there, or set no bound")


def _needs(grants: Mapping[str, tuple[str, ...]], how: How) -> tuple[Needs, tuple[str, ...]]:
    from sage_sandbox.brokering import needs_of, shared_servers
    from sage_sandbox.grants.servers import Approvals, approve_servers
    from sage_sandbox.toolservers.reading import read_catalog

    catalog = read_catalog(how.project)
    names = dict.fromkeys(pattern.partition("/")[0] for patterns in grants.values() for pattern in patterns)
    servers = [catalog.find(name) for name in names]
    notices = approve_servers(servers, how.project, approvals=Approvals.of_user(how.env), ask=how.ask_server)
    for server in servers:
        if lacking := server.lacking(how.env):
            raise UsageError(f"the tool server {server.name} needs {', '.join(lacking)}", "set it in the environment")
    return needs_of(servers, grants, how.env, shared_servers(how.env)), notices


def _overrides(limits: Iterable[str] | AskedLimits) -> AskedLimits:
    from sage_sandbox.grants.limits import parse_limit_options

    return limits if isinstance(limits, AskedLimits) else parse_limit_options(limits)


def _definition(
    workflow: Workflow,
    values: Mapping[str, Any],
    overrides: AskedLimits,
    review: Review,
    timeout_s: float | None,
    environ: Mapping[str, str],
) -> Definition:
    from sage_sandbox.journal import utc_now, without_secrets
    from sage_sandbox.results.scrub import known_values
    from sage_sandbox.store.records import Definition

    assert workflow.template is not None
    definition = Definition(
        number=1,  # where there is one already, the store gives it the next
        name=workflow.name,
        kind=workflow.template.kind,
        source=os.path.abspath(workflow.source),  # noqa: PTH100 - links in it are the user's own words
        digest=workflow.digest,
        text=workflow.template.text,
        phase_ids=tuple(phase.id for phase in workflow.phases),
        made_at=utc_now(),
        files=workflow.template.files,
        params=values,
        grants=tuple(str(grant) for grant in review.held),
        limits=asdict(overrides),
        timeout_s=timeout_s,
    )
    return without_secrets(definition, known_values(environ))


def _lacking(definition: Definition | None) -> str:
    """What to say of a definition that nothing can go by again."""
    if definition is None or not definition.lacks_secrets:
        return ""
    return "a secret stands in the template or in a parameter: it is not saved, so this run cannot be resumed"


# -- what a resume goes on from ------------------------------------------------------------------------------------


def _template(definition: Definition) -> Template:
    kinds = {"yaml": "yaml", "json": "json", "toml": "toml"}
    return Template(kinds[definition.kind], definition.text, definition.files)  # type: ignore[arg-type]


def _stored_workflow(definition: Definition) -> Workflow:
    from sage_sandbox.workflow.loading import load_stored

    if definition.lacks_secrets:
        message = "a secret stood in the template or in a parameter: that is not saved, so nothing can go on from it"
        raise UsageError(message, "start anew with --restart; a secret belongs in an env: grant")
    return load_stored(_template(definition), definition.source)


def _changes(definition: Definition) -> tuple[str, ...]:
    from sage_sandbox.workflow.loading import differs_on_disk

    changed = differs_on_disk(_template(definition), definition.source)
    if not changed:
        return ()
    return (f"{', '.join(changed)} changed since; going on with what was stored (--update takes the new one)",)


def _known_limits(definition: Definition) -> dict[str, Any]:
    """The limits the user set when the run began, as far as this version knows them."""
    names = AskedLimits.__dataclass_fields__
    return {name: value for name, value in definition.limits.items() if name in names}


def _require_state(project: Path, feature: str) -> None:
    """NoSuchRun where nothing of that name was ever saved: then nothing is made there either."""
    from sage_sandbox.store.layout import features_among, state_folder

    _check_place(project, feature)
    with suppress(FileNotFoundError), state_folder(project) as folder:
        if feature in features_among(folder.names()):
            return
    raise NoSuchRun(f"there is no run of {feature} in this project", "sage-sandbox list shows what there is")


def _allowed(definition: Definition, how: How) -> tuple[Grant, ...]:
    """What was granted when the run began, and what is granted now."""
    return tuple(dict.fromkeys((*(parse_grant(text) for text in definition.grants), *how.allow)))


def _updated(definition: Definition, stored: Workflow) -> tuple[Workflow, Mapping[str, Any]]:
    """The template as it is on disk now, and its parameters: as they were given, by default as it says now."""
    from sage_sandbox.workflow.changes import parameters_left
    from sage_sandbox.workflow.loading import load
    from sage_sandbox.workflow.parameters import resolve_params

    workflow = load(definition.source)
    return workflow, resolve_params(workflow, _typed(parameters_left(stored, workflow, definition.params)))


def _aside(
    found: Found, stored: Workflow, workflow: Workflow, values: Mapping[str, Any], from_phase: str | None
) -> dict[str, str]:
    """Why phases no longer count whose checkpoints may be there: the user said so, or an update changed them."""
    from sage_sandbox.workflow.changes import changed_phases
    from sage_sandbox.workflow.planning import descendants

    ids = [phase.id for phase in workflow.phases]
    if from_phase is not None and from_phase not in ids:
        raise NoSuchPhase(
            f"there is no phase {from_phase!r} in {workflow.name}", f"its phases are {', '.join(ids[:20])}"
        )
    before = found.definition.params
    starts = changed_phases(stored, workflow, {name for name in values if values[name] != before.get(name)})
    if from_phase is not None:
        starts[from_phase] = "as you asked"
    after = dict.fromkeys(descendants(workflow, starts), "it follows from what runs again")
    gone = dict.fromkeys(found.checkpoints.keys() - set(ids), "it is not in the template any more")
    return {**gone, **after, **starts}


def _repairs(found: Found) -> Iterator[str]:
    if found.source != "state":
        where = {"backup": "backup", "checkpoints": "the checkpoints"}[found.source]
        done, total = found.state.progress["completed"], found.state.progress["total"]
        yield f"Workflow state corrupted, restoring from {where} · ✓ restored to phase {done} of {total}"
    for damage in found.damages:
        again = f", {damage.phase} runs again" if damage.phase else ""
        yield f"{damage.message}: it is kept in .sage/state/aside{again}"


def _said(*notices: str) -> tuple[str, ...]:
    return tuple(notice for notice in notices if notice)


def check_feature(feature: str) -> None:
    """UsageError unless the name can be part of a path: checked before any path is built from it."""
    if not FEATURE.fullmatch(feature):
        raise UsageError(f"{feature!r} is not a feature name", "use 1 to 64 of a-z, 0-9 and -, not - first")


def slug(name: str) -> str:
    """The feature of a workflow that nobody named one for."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:FEATURE_MAX].rstrip("-") or "workflow"


def _check_place(project: Path, feature: str) -> None:
    """UsageError if the project has put something else where state and artifacts go than folders of its own."""
    root = project / ".sage" / "artifacts"
    for place in (root.parent, root, root / feature):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise UsageError(f"{place} is not a folder", "the project may have brought it; remove it")


def _typed(params: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as they would be typed: the command line's reader is the only one."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in params.items()}


def _seconds(timeout: float | str) -> float:
    try:
        return parse_duration(timeout)
    except ValueError as error:
        raise UsageError(f"timeout: {error}") from error
