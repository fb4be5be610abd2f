"""What a run left, read without changing anything: what is good, what is damaged, and what that leads to.

The anchor is read before the state. The writer writes them the other way round, so a state that is older than the
anchor was put back, and never is a race.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import field, replace
from typing import Final, Literal, TypeVar

from sage_sandbox.disk.files import Folder
from sage_sandbox.disk.places import ProjectPlace
from sage_sandbox.errors import NoSuchRun, StateCorrupted
from sage_sandbox.frozen import frozen
from sage_sandbox.store.envelope import Opened
from sage_sandbox.store.keys import Keys
from sage_sandbox.store.layout import (
    NO_RUN,
    Anchor,
    Foreign,
    Reader,
    backup_name,
    checkpoint_name,
    checkpoints_among,
    definition_name,
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
RESTART_HINT: Final = "nothing can go on without it: start anew with --restart"
LOOKS: Final = 5
"""How often a reader without the lock looks again before it believes that something is wrong."""

_T = TypeVar("_T")


class RolledBack(StateCorrupted):
    """The state is whole, and older than what was written last."""


@frozen
class Damage:
    """A file that is not what was written there: its name, what is wrong, the phase that runs again for it, if any."""

    name: str
    message: str
    phase: str = ""


@frozen
class Found:
    """A run as it stands on disk. ``checkpoints`` are those that count, by phase; ``main`` the main file's good bytes.

    ``generation`` and ``sequence`` are the highest that main file and checkpoints had; ``attempts`` the highest of each
    phase. ``repaired``: ``state`` accounts for something that no main file does yet.
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
    repaired: bool = False


@frozen
class _Main:
    """The main file, or what stands for it. ``definition`` is the number of the definition in force."""

    state: State
    generation: int
    definition: int
    data: bytes
    source: Source
    damages: tuple[Damage, ...] = ()


def read_run(folder: Folder, place: ProjectPlace, feature: str, keys: Keys) -> Found:
    """Everything a run left. NoSuchRun; StateCorrupted where nothing can be trusted to go on from; WrongKey."""
    reader = Reader(folder, place.id, feature, keys)
    return _surely(reader, lambda: _read(reader, read_anchor(place, feature)))


def read_state(folder: Folder, place: ProjectPlace, feature: str, keys: Keys) -> State:
    """The main file alone (or what stands for it), for looking at: no checkpoint is opened where it is good."""
    reader = Reader(folder, place.id, feature, keys)

    def look() -> State:
        anchor = read_anchor(place, feature)
        try:
            return _checked(reader, reader.main(main_name(feature)), anchor).state
        except (FileNotFoundError, StateCorrupted):
            return _read(reader, anchor).state

    return _surely(reader, look)


def take_over(folder: Folder, place: ProjectPlace, feature: str, keys: Keys) -> Found:
    """What is there, for a user who says that it counts.

    It may be older than the anchor, of another project or sealed under the other setting.
    """
    reader = Reader(folder, place.id, feature, keys, anyhow=True)
    return _surely(reader, lambda: _read(reader, read_anchor(place, feature), accept=True))


def _surely(reader: Reader, look: Callable[[], _T]) -> _T:
    """What ``look`` finds. What it finds wrong has to be wrong twice.

    Readers take no lock: a restart may put another run in the place of the one that is being read. Every step of it
    leaves what can be read, so that a look that begins after it finds nothing wrong.
    """
    said = ""
    for _ in range(LOOKS - 1):
        try:
            return _naming(reader, look)
        except (NoSuchRun, StateCorrupted) as error:
            if error.message == said:
                raise
            said = error.message
    return _naming(reader, look)


def _naming(reader: Reader, look: Callable[[], _T]) -> _T:
    try:
        return look()
    except OSError as error:  # what cannot be read now may be good: it is no damage
        path = f"{reader.folder.path}/{error.filename or main_name(reader.feature)}"
        raise StateCorrupted(f"{path} cannot be read: {error.strerror}", "", path) from error


def _read(reader: Reader, anchor: Anchor | None, *, accept: bool = False) -> Found:
    """One look. ``accept``: the anchor only says which numbers were used."""
    with _opened_below(reader) as below:
        main = _read_main(reader, below, None if accept else anchor)
        if below is None:
            raise _gone(f"{reader.folder.path}/{folder_name(reader.feature)}")
        definition = _read_definition(reader, below, main.definition, main.state.run)
        if main.source != "state":
            main = replace(main, state=_as_defined(main.state, definition))
        if accept and anchor is not None:
            main = replace(main, generation=max(main.generation, anchor.generation))
        return _with_checkpoints(reader, below, anchor, main, definition, accept=accept)


@contextmanager
def _opened_below(reader: Reader) -> Iterator[Folder | None]:
    with ExitStack() as opened:
        below = None
        with suppress(FileNotFoundError):
            below = opened.enter_context(reader.folder.below(folder_name(reader.feature)))
        yield below


# -- the main file -------------------------------------------------------------------------------------------------


def _read_main(reader: Reader, below: Folder | None, anchor: Anchor | None) -> _Main:
    """The main file if it is good, else its backup, else one made anew."""
    wrong: dict[str, StateCorrupted] = {}
    main = _tried(reader, main_name(reader.feature), wrong)
    backup = _tried(reader, backup_name(reader.feature), wrong)
    damages = tuple(Damage(name, error.message) for name, error in wrong.items())
    if main is not None:
        return replace(_checked(reader, main, anchor), damages=damages)
    first = next(iter(wrong.values()), None)
    try:
        found = _restored(reader, backup, anchor) or _rebuilt(reader, below, anchor)
    except StateCorrupted as error:
        raise first or error from error
    if found is None:
        raise first or _no_run(reader.feature, anchor)
    return replace(found, damages=damages)


def _tried(reader: Reader, name: str, wrong: dict[str, StateCorrupted]) -> tuple[bytes, Opened] | None:
    """A file that is true; None if there is none, or if it is ``wrong``."""
    try:
        return reader.main(name)
    except FileNotFoundError:
        return None
    except StateCorrupted as error:
        wrong[name] = error
        return None


def _checked(reader: Reader, main: tuple[bytes, Opened], anchor: Anchor | None) -> _Main:
    """The main file, unless it is older than the anchor. What is newer may be of another run: its anchor was lost."""
    data, opened = main
    path = f"{reader.folder.path}/{main_name(reader.feature)}"
    state = decode_state(opened.payload, path)
    if anchor is not None and opened.generation < anchor.generation:
        raise _rolled_back(path, "is older than what was written last")
    if anchor is not None and opened.generation == anchor.generation and state.run != anchor.run:
        raise _rolled_back(path, "is of an earlier run")
    return _Main(state, opened.generation, state.definition, data, "state")


def _restored(reader: Reader, backup: tuple[bytes, Opened] | None, anchor: Anchor | None) -> _Main | None:
    """The backup, if it is the one that was made last: at most one generation before what the anchor knows."""
    if backup is None:
        return None
    data, opened = backup
    state = decode_state(opened.payload, f"{reader.folder.path}/{backup_name(reader.feature)}")
    generation, definition = opened.generation, state.definition
    if anchor is not None:
        begun = anchor.run == NO_RUN
        if generation < anchor.generation + (1 if begun else -1) or not (begun or state.run == anchor.run):
            return None
        # The main file it stands for may have been of the next definition.
        generation, definition = max(generation, anchor.generation), max(definition, anchor.definition)
    return _Main(state, generation, definition, data, "backup")


def _rebuilt(reader: Reader, below: Folder | None, anchor: Anchor | None) -> _Main | None:
    """A main file made of the definition in force; the checkpoints say the rest."""
    if below is None:
        return None
    names = below.names()
    anchored = anchor is not None and anchor.run != NO_RUN
    number = anchor.definition if anchor is not None and anchored else max(definitions_among(names), default=0)
    try:
        opened = reader.definition(below, number, "")
    except FileNotFoundError:
        return None
    run = opened.subject.run
    # After a run was set aside, only one that has just begun has no main file: without checkpoints.
    if anchor is not None and (run != anchor.run if anchored else checkpoints_among(names)):
        raise _rolled_back(below.path, "is of an earlier run")
    made_at = decode_definition(opened.payload, below.path).made_at
    state = State(run, reader.feature, "", "running", number, (), made_at, made_at)
    return _Main(state, anchor.generation if anchor else 0, number, b"", "checkpoints")


def _no_run(feature: str, anchor: Anchor | None) -> NoSuchRun:
    if anchor is not None and anchor.run != NO_RUN:
        hint = f"start it anew: sage-sandbox run … {feature}"
        return NoSuchRun(f"the state of {feature} is gone from this project", hint)
    return NoSuchRun(f"there is no run of {feature} in this project", "sage-sandbox list shows what there is")


# -- the definition ------------------------------------------------------------------------------------------------


def _read_definition(reader: Reader, below: Folder, number: int, run: str) -> Definition:
    path = f"{below.path}/{definition_name(number)}"
    try:
        return decode_definition(reader.definition(below, number, run).payload, path)
    except FileNotFoundError:
        raise _gone(path) from None
    except Foreign:
        raise
    except StateCorrupted as error:
        raise StateCorrupted(error.message, RESTART_HINT, path) from error


def _as_defined(state: State, definition: Definition) -> State:
    """The state, with what the main file that is lost took from its definition."""
    return replace(
        state,
        definition=definition.number,
        template=definition.name,
        phase_ids=definition.phase_ids,
        dropped=definition.dropped,
        absent=definition.absent,
    )


# -- the checkpoints -----------------------------------------------------------------------------------------------


def _with_checkpoints(
    reader: Reader, below: Folder, anchor: Anchor | None, main: _Main, definition: Definition, *, accept: bool
) -> Found:
    state = main.state
    every, wrong = _read_checkpoints(reader, below, state)
    counted = _newest(every, state)
    seen = {*state.absent, *(generation for _, _, generation in state.dropped)}
    seen.update(checkpoint.generation for checkpoint in every)
    # What was certainly written: what the anchor knows of, and what the main file's index names.
    known = anchor.sequence if anchor is not None and anchor.run == state.run else 0
    indexed = {mark.generation for mark in state.checkpoints.values()}
    missing = ({*range(1, known + 1)} | indexed) - seen
    if len(missing) > len(wrong) and not accept:  # of a damaged one, nobody knows which it was
        raise _rolled_back(below.path, f"lacks {len(missing)} of the checkpoints that were written")
    sequence = max(seen | indexed | {known})
    absent = tuple(sorted({*state.absent, *(set(range(1, sequence + 1)) - seen)}))
    return Found(
        state=replace(state, checkpoints={phase: one.mark for phase, one in counted.items()}, absent=absent),
        definition=definition,
        checkpoints=counted,
        generation=main.generation,
        sequence=sequence,
        attempts=_attempts(every, state),
        main=main.data,
        source=main.source,
        damages=(*main.damages, *_damages(wrong, counted, definition)),
        repaired=bool(main.source != "state" or main.damages or wrong or absent != state.absent),
    )


def _read_checkpoints(
    reader: Reader, below: Folder, state: State
) -> tuple[list[Checkpoint], dict[tuple[str, int], StateCorrupted]]:
    """Every checkpoint that was not dropped; by phase and attempt, what is wrong with others."""
    dropped = {(phase, attempt) for phase, attempt, _ in state.dropped}
    every: list[Checkpoint] = []
    wrong: dict[tuple[str, int], StateCorrupted] = {}
    for phase, attempt in checkpoints_among(below.names()):
        if (phase, attempt) in dropped:
            continue
        try:
            opened = reader.checkpoint(below, phase, attempt, state.run)
        except Foreign:
            raise
        except StateCorrupted as error:
            wrong[phase, attempt] = error
        else:
            path = f"{below.path}/{checkpoint_name(phase, attempt)}"
            every.append(decode_checkpoint(opened.payload, path, opened.generation))
    return every, wrong


def _newest(every: Iterable[Checkpoint], state: State) -> dict[str, Checkpoint]:
    """The checkpoint that counts, by phase. With one that was dropped, those before it were."""
    first = {phase: attempt + 1 for phase, attempt, _ in sorted(state.dropped)}
    counted: dict[str, Checkpoint] = {}
    for checkpoint in every:
        known = counted.get(checkpoint.phase)
        least = known.attempt + 1 if known is not None else first.get(checkpoint.phase, 1)
        if checkpoint.attempt >= least:
            counted[checkpoint.phase] = checkpoint
    return counted


def _attempts(every: Iterable[Checkpoint], state: State) -> dict[str, int]:
    """The highest attempt of each phase: of those that are true, for anybody can put a name with any number there."""
    attempts: dict[str, int] = {}
    found = ((checkpoint.phase, checkpoint.attempt) for checkpoint in every)
    for phase, attempt in (*found, *((phase, attempt) for phase, attempt, _ in state.dropped)):
        attempts[phase] = max(attempt, attempts.get(phase, 0))
    return attempts


def _damages(
    wrong: Mapping[tuple[str, int], StateCorrupted], counted: Mapping[str, Checkpoint], definition: Definition
) -> Iterator[Damage]:
    for (phase, attempt), error in wrong.items():
        again = phase in definition.phase_ids and (phase not in counted or counted[phase].attempt < attempt)
        yield Damage(checkpoint_name(phase, attempt), error.message, phase if again else "")


def _rolled_back(path: str, how: str) -> RolledBack:
    return RolledBack(f"{path} {how}: the state was rolled back", ADOPT_HINT, path)


def _gone(path: str) -> RolledBack:
    return RolledBack(f"{path} is gone", RESTART_HINT, path)
