"""``sage-sandbox demo``: a true report by an untrusted workflow, and two hostile operations that get nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sage_sandbox.frozen import frozen

if TYPE_CHECKING:
    from sage_sandbox.demo.bait import Act, Answer
    from sage_sandbox.document import RunResult
    from sage_sandbox.outcome import Outcome

DEMO: Final = Path(__file__).parents[1] / "demo"
REPORT: Final = DEMO / "repo_report" / "repo_report.yaml"
HOSTILE: Final = DEMO / "hostile" / "hostile.yaml"
SAMPLE: Final = DEMO / "sample"

SENTENCE_MAX: Final = 500


@frozen
class Shown:
    """Everything the demo has to say. It succeeded if nothing is in ``errors``."""

    project: Path
    report: RunResult
    attack: RunResult
    acts: tuple[Act, ...]
    errors: tuple[str, ...]


@click.command("demo")
@click.option(
    "--project",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Report on this folder (default: the repository around the working directory, else a small bundled one).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(project: Path | None, as_json: bool) -> int:
    """Show an untrusted workflow at work, and hostile code denied.

    Runs the template of examples/repo_report with one grant, read:. of the project, and then that of examples/hostile
    with none: it goes for a secret file planted in HOME, your SSH keys (opened, never read), another process's
    environment and a listening port. Each act is first shown to succeed outside the sandbox.

    Exits 0 if the report is there and every act was denied, else 1.
    """
    with _project(project) as folder:
        shown = _show(folder)
        if as_json:
            click.echo(json.dumps(_document(shown), indent=2))
        else:
            for line in _lines(shown):
                click.echo(line)
    for error in shown.errors:
        _say(f"✗ {error}")
    return 1 if shown.errors else 0


def _show(project: Path) -> Shown:
    """Run both workflows over the project, and judge what came of them."""
    import sage_sandbox as sage

    _say(f"running {REPORT.name} over {project}, allowed: read:.")
    report = sage.run(REPORT, project=project, allow=("read:.",), state=False)
    _say(f"running {HOSTILE.name}, allowed: nothing")
    attack, acts = _attack(project)
    return Shown(project, report, attack, tuple(acts), (*_report_errors(report), *_act_errors(attack, acts)))


def _attack(project: Path) -> tuple[RunResult, list[Act]]:
    """Plant the bait, let the hostile code go for it outside and inside, and take it away again."""
    import sage_sandbox as sage
    from sage_sandbox.demo import bait as demo_bait

    place, why = demo_bait.place_for_secret(Path.home())
    if why:
        _say(f"{why}: the secret file is planted in {place} instead")
    with demo_bait.planted(place) as bait:
        outside = bait.try_outside()
        heard_outside = bait.heard(wait_s=2.0)
        result = sage.run(HOSTILE, project=project, params=bait.params(), allow=(), state=False)
        inside: list[Answer] = []
        for outcome in _outcomes(result).values():
            inside += demo_bait.answers(outcome.value() if outcome.ok else None)
        return result, demo_bait.compare(bait, outside, inside, heard_outside, bait.heard())


@contextmanager
def _project(asked: Path | None) -> Iterator[Path]:
    """The folder to report on: the one asked for, the repository we are in, or a copy of the bundled sample."""
    if asked is not None:
        yield asked.resolve()
    elif (repository := repository_around(Path.cwd())) is not None:
        yield repository
    else:
        _say("no git repository here that may be read: taking the bundled sample, which has no history")
        with tempfile.TemporaryDirectory(prefix="sage-sample-") as folder:
            # An installer compiles what it installs, the sample too.
            compiled = shutil.ignore_patterns("__pycache__")
            yield Path(shutil.copytree(SAMPLE, Path(folder).resolve() / "tide", ignore=compiled))


def repository_around(start: Path) -> Path | None:
    """The nearest folder upwards that holds a ``.git``; none if that is home or the root, which nobody should grant."""
    start = start.resolve()
    found = next((folder for folder in (start, *start.parents) if (folder / ".git").exists()), None)
    return None if found is None or Path.home().resolve().is_relative_to(found) else found


def _outcomes(result: RunResult) -> dict[str, Outcome]:
    """Every outcome of a run by ``phase/operation``."""
    return {
        f"{phase.id}/{operation.id}": operation.outcome for phase in result.phases for operation in phase.operations
    }


def _digest(result: RunResult) -> dict[str, Any] | None:
    """What the digest returned, without personal data; None unless it has the shape it should."""
    from sage_sandbox.results.leaving import hand_back

    outcome = next((outcome for name, outcome in _outcomes(result).items() if name.startswith("digest/")), None)
    value = hand_back(outcome, whole=True).value if outcome is not None and outcome.ok else None
    return value if isinstance(value, dict) and isinstance(value.get("summary"), dict) else None


def _report_errors(report: RunResult) -> list[str]:
    """Why there is no report, if there is none."""
    if report.status == "completed" and _digest(report) is not None:
        return []
    from sage_sandbox.escaping import clip
    from sage_sandbox.results.personal import cleaned

    causes = [f"{name}: {clip(cleaned(one.error), 200)}" for name, one in _outcomes(report).items() if not one.ok]
    return [f"the report failed ({report.status}): " + ("; ".join(causes) or "the digest returned something else")]


def _act_errors(attack: RunResult, acts: Sequence[Act]) -> list[str]:
    """What was not denied, and what proves nothing because it did not succeed outside either."""
    from sage_sandbox.escaping import clip

    errors = [
        f"{name} did not return what the kernel answered: {clip(outcome.error, 200)}"
        for name, outcome in _outcomes(attack).items()
        if not outcome.ok
    ]
    for act in acts:
        if not act.succeeded_outside:
            errors.append(f"not shown, it does not succeed outside either: {clip(act.what, 200)}")
        if not act.denied_inside:
            errors.append(f"NOT denied: {clip(act.what, 200)}: {clip(act.inside, 200)}")
    return errors


def _lines(shown: Shown) -> Iterator[str]:
    """The demo as text: the report, then each act outside and inside."""
    yield f"{_safe(shown.project)}: a report by an untrusted workflow, allowed: read:."
    digest = _digest(shown.report)
    for subject, sentence in (digest["summary"] if digest else {}).items():
        yield from _entry(str(subject), str(sentence))
    yield ""
    yield f"  {_how_run(shown.report)}"
    yield ""
    yield "a hostile workflow, allowed: nothing"
    for act in shown.acts:
        yield f"  {_safe(act.what)}"
        yield f"      outside  {_safe(act.outside)}"
        yield f"      inside   {_safe(act.inside)}{'' if act.denied_inside else '   <-- NOT DENIED'}"
    yield ""
    denied = sum(act.denied_inside and act.succeeded_outside for act in shown.acts)
    yield f"  {denied} of {len(shown.acts)} acts succeeded outside and were denied inside"


def _entry(subject: str, sentence: str) -> Iterator[str]:
    """A subject in the margin, its sentence beside it."""
    from sage_sandbox.escaping import clip

    margin, width = 13, min(max(shutil.get_terminal_size().columns, 60), 120)
    wrapped = textwrap.wrap(clip(sentence, SENTENCE_MAX), width - margin, break_on_hyphens=False) or [""]
    yield f"  {clip(subject, margin - 3):<{margin - 2}}{wrapped[0]}"
    yield from (" " * margin + line for line in wrapped[1:])


def _how_run(report: RunResult) -> str:
    """How many operations, how confined, what was rejected."""
    from sage_sandbox.escaping import clip
    from sage_sandbox.results.personal import cleaned

    outcomes = _outcomes(report)
    levels = "/".join(sorted({outcome.level for outcome in outcomes.values()}))
    memory = "/".join(sorted({outcome.capabilities.memory for outcome in outcomes.values()}))
    rejected = [f"{name} ({clip(cleaned(one.error), 120)})" for name, one in outcomes.items() if not one.ok]
    said = f"{len(outcomes)} operations, each in a sandbox of its own (level {levels}, memory: {memory})"
    return said + (f"; rejected: {', '.join(rejected)}" if rejected else "")


def _document(shown: Shown) -> dict[str, Any]:
    """The demo as one JSON document; ``json.dumps`` escapes whatever a terminal would act on."""
    return {
        "success": not shown.errors,
        "project": os.fspath(shown.project),
        "report": {
            "status": shown.report.status,
            "digest": _digest(shown.report),
            "operations": [_operation(name, outcome) for name, outcome in _outcomes(shown.report).items()],
        },
        "acts": [
            {
                "act": act.name,
                "what": act.what,
                "outside": act.outside,
                "inside": act.inside,
                "succeededOutside": act.succeeded_outside,
                "denied": act.denied_inside,
            }
            for act in shown.acts
        ],
        "errors": list(shown.errors),
    }


def _operation(name: str, outcome: Outcome) -> dict[str, Any]:
    from sage_sandbox.results.personal import cleaned

    phase, _, operation = name.partition("/")
    return {
        "phase": phase,
        "id": operation,
        "status": outcome.status,
        "error": cleaned(outcome.error),
        "durationMs": round(outcome.duration_s * 1000, 3),
        "sandboxLevel": outcome.level,
    }


def _safe(text: object) -> str:
    from sage_sandbox.escaping import clip

    return clip(str(text), SENTENCE_MAX)


def _say(text: str) -> None:
    """Progress and complaints go to stderr: stdout is the demo's answer."""
    click.echo(_safe(text), err=True)
