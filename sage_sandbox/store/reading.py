"""What a run left, read without changing anything: what is good, what is damaged, and what that leads to.

The anchor is read before the state. The writer writes them the other way round, so a state that is older than the anchor
was put back, and never is a race.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from sage_sandbox.disk.files import Folder
from sage_sandbox.disk.places import ProjectPlace
from sage_sandbox.errors import NoSuchRun, StateCorrupted
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.layout import (
    ANY_RUN,
    Anchor,
    Reader,
    backup_name,
    checkpoint_name,
    checkpoints_among,
    definitions_among,
    folder_name,
    main_name,
    read_anchor,
)
from sage_sandbox.store.records import (
    Checkpoint,
    Definition,
    State,
    decode_checkpoint,
    decode_definition,
    decode_state,
)

Source = Literal["state", "backup", "checkpoints"]
ADOPT_HINT: Final = "if you restored it yourself: sage-sandbox state rekey"


class RolledBack(StateCorrupted):
    """The state is whole, and older than what was written last."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is not what was written there: its name, what is wrong, the phase it held (empty: the main file)."""

    name: str
    message: str
    phase: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A run as it stands on disk. ``checkpoints`` are those that count, by phase; ``main`` the main file's good bytes.

    ``generation`` and ``sequence`` are the highest that main file and checkpoints had; ``attempts`` the highest by
    phase, whatever became of its file.
    """

    state: State
    definition: Definition
    checkpoints: Mapping[str, Checkpoint]
    generation: int
    sequence: int
    attempts: Mapping[str, int] = field(default_factory=dict)
    main: bytes = b""
    source: Source = "state"
    damages: tuple[Damage, ...] = ()


@dataclass(frozen=True, slots=True)
class _Main:
    """The main file, wherever it came from."""

    state: State
    generation: int
    data: bytes
    source: Source
    damages: tuple[Damage, ...] = ()


def read_run(folder: Folder, place: ProjectPlace, feature: str, keys: Keys) -> Found:
    """Everything a run left. NoSuchRun; StateCorrupted where nothing can be trusted to go on from; WrongKey."""
    anchor = read_anchor(place, feature)
    reader = Reader(folder, place.id, feature, keys)
    try:
        below = folder.below(folder_name(feature))
    except FileNotFoundError:
        below = None
    try:
        main = _read_main(reader, below, anchor)
        if below is None:
            raise _rolled_back(f"{folder.path}/{folder_name(feature)}", "is gone")
        definition = _read_definition(reader, below, main.state)
        return _with_checkpoints(reader, below, anchor, main, definition)
    finally:
        if below is not None:
            below.close()


def read_state(folder: Folder, place: ProjectPlace, feature: str, keys: Keys) -> State:
    """The main file alone (or what stands for it), for looking at: no checkpoint is opened where it is good."""
    anchor = read_anchor(place, feature)
    reader = Reader(folder, place.id, feature, keys)
    try:
        return _good_main(reader, anchor).state
    except (FileNotFoundError, StateCorrupted):
        return read_run(folder, place, feature, keys).state


# -- the main file -------------------------------------------------------------------------------------------------


def _good_main(reader: Reader, anchor: Anchor | None) -> _Main:
    name = main_name(reader.feature)
    data, opened = reader.main(name)
    state = decode_state(opened.payload, f"{reader.folder.path}/{name}")
    _check_main(f"{reader.folder.path}/{name}", state, opened.generation, anchor)
    return _Main(state, opened.generation, data, "state")


def _check_main(path: str, state: State, generation: int, anchor: Anchor | None) -> None:
    if anchor is None or generation > anchor.generation:
        return
    if generation < anchor.generation:
        raise _rolled_back(path, "is older than what was written last")
    if anchor.run not in (ANY_RUN, state.run):
        raise _rolled_back(path, "is of an earlier run")


def _read_main(reader: Reader, below: Folder | None, anchor: Anchor | None) -> _Main:
    trouble: StateCorrupted | None = None
    damages: tuple[Damage, ...] = ()
    try:
        return _good_main(reader, anchor)
    except FileNotFoundError:
        pass
    except RolledBack:
        raise
    except StateCorrupted as error:
        trouble, damages = error, (Damage(main_name(reader.feature), error.message),)
    try:
        main = _backup(reader, anchor) or _rebuilt(reader, below, anchor)
    except StateCorrupted as error:
        raise (trouble or error) from error
    if main is not None:
        return replace(main, damages=(*damages, *main.damages))
    raise trouble or _no_run(reader.feature, anchor)


def _no_run(feature: str, anchor: Anchor | None) -> NoSuchRun:
    if anchor is not None:
        return NoSuchRun(f"the state of {feature} is gone from this project", f"start it anew: sage-sandbox run … {feature}")
    return NoSuchRun(f"there is no run of {feature} in this project", "sage-sandbox list shows what there is")


def _backup(reader: Reader, anchor: Anchor | None) -> _Main | None:
    """The backup, if it is the one that was made last: one generation before what the anchor knows."""
    name = backup_name(reader.feature)
    try:
        data, opened = reader.main(name)
        state = decode_state(opened.payload, f"{reader.folder.path}/{name}")
    except (FileNotFoundError, StateCorrupted):
        return None
    if anchor is not None and (
        opened.generation < anchor.generation - 1 or anchor.run not in (ANY_RUN, state.run)
    ):
        return None
    generation = max(opened.generation, anchor.generation if anchor else 0)
    return _Main(state, generation, data, "backup")


def _rebuilt(reader: Reader, below: Folder | None, anchor: Anchor | None) -> _Main | None:
    """A main file made of the newest definition; the checkpoints say the rest."""
    if below is None:
        return None
    for number in definitions_among(below.names()):
        try:
            opened = reader.definition(below, number, "")
            definition = decode_definition(opened.payload, below.path)
        except (FileNotFoundError, StateCorrupted):
            continue
        run = opened.subject.run
        if anchor is not None and anchor.run not in (ANY_RUN, run):
            raise _rolled_back(below.path, "is of an earlier run")
        state = State(
            run=run,
            feature=reader.feature,
            template=definition.name,
            status="running",
            definition=number,
            phase_ids=definition.phase_ids,
            started_at=definition.made_at,
            updated_at=definition.made_at,
        )
        return _Main(state, anchor.generation if anchor else 0, b"", "checkpoints")
    return None


def _read_definition(reader: Reader, below: Folder, state: State) -> Definition:
    try:
        opened = reader.definition(below, state.definition, state.run)
    except FileNotFoundError:
        raise _rolled_back(f"{below.path}/_definition.{state.definition}.json", "is gone") from None
    return decode_definition(opened.payload, below.path)


# -- the checkpoints -----------------------------------------------------------------------------------------------


def _with_checkpoints(
    reader: Reader, below: Folder, anchor: Anchor | None, main: _Main, definition: Definition
) -> Found:
    state = main.state
    dropped = {(phase, attempt) for phase, attempt, _ in state.dropped}
    counted: dict[str, Checkpoint] = {}
    attempts = {phase: attempt for phase, attempt, _ in state.dropped}
    damages: list[Damage] = []
    seen = {*state.absent, *(generation for _, _, generation in state.dropped)}
    for phase, attempt in checkpoints_among(below.names()):
        attempts[phase] = max(attempt, attempts.get(phase, 0))
        if (phase, attempt) in dropped:
            continue
        try:
            checkpoint = _read_checkpoint(reader, below, phase, attempt, state.run)
        except StateCorrupted as error:
            damages.append(Damage(checkpoint_name(phase, attempt), error.message, phase))
            continue
        seen.add(checkpoint.generation)
        if phase not in counted or counted[phase].attempt < attempt:
            counted[phase] = checkpoint
    known = anchor.sequence if anchor and anchor.run == state.run else 0
    sequence = max(seen, default=0)
    missing = _missing(state, seen, known)
    if len(missing) > len(damages):
        raise _rolled_back(below.path, f"lacks {len(missing)} of the checkpoints that were written")
    sequence = max(sequence, known)
    absent = tuple(sorted({*state.absent, *(set(range(1, sequence + 1)) - seen)}))
    return Found(
        state=replace(state, checkpoints={p: c.mark for p, c in counted.items()}, absent=absent),
        definition=definition,
        checkpoints=counted,
        generation=main.generation,
        sequence=sequence,
        attempts=attempts,
        main=main.data,
        source=main.source,
        damages=(*main.damages, *damages),
    )


def _missing(state: State, seen: set[int], known: int) -> set[int]:
    """Generations that were certainly written: what the anchor knows of, and what the main file's index names."""
    indexed = {mark.generation for mark in state.checkpoints.values()}
    return ({*range(1, known + 1)} | indexed) - seen


def _read_checkpoint(reader: Reader, below: Folder, phase: str, attempt: int, run: str) -> Checkpoint:
    opened = reader.checkpoint(below, phase, attempt, run)
    return decode_checkpoint(opened.payload, f"{below.path}/{checkpoint_name(phase, attempt)}", opened.generation)


def _rolled_back(path: str, how: str) -> RolledBack:
    return RolledBack(f"{path} {how}: the state was rolled back", ADOPT_HINT, path)
