"""How long a run takes of which nothing has changed, and what it costs to know that.

The example report over a small repository, every operation of it cached: a whole process, from the command line to its
end, beside the bare interpreter and beside the same run without the cache. Then the digest of a large tree: read whole,
and again from its index as another process would.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks.floors.programs import BARE, program
from benchmarks.harness import Round, Scale, each, pick, take_turns
from benchmarks.machine import HERE
from benchmarks.projects import LARGE, SMALL, make_project
from benchmarks.records import Aim, Row, row
from benchmarks.script import main
from benchmarks.subjects import cli_argv
from sage_sandbox.caching.index import Index
from sage_sandbox.caching.trees import SETTLED_NS, Trees
from sage_sandbox.disk.files import Folder

REPORT: Final = HERE.parent / "sage_sandbox" / "demo" / "repo_report" / "repo_report.yaml"
_CACHED, _WHOLE, _BARE = (
    "the report, wholly cached: a whole process",
    "the report, nothing cached",
    "python3 -I -S -c pass",
)


def measure(scale: Scale) -> Iterator[Row]:
    """The cached run, then the digests."""
    if shutil.which("git") is None:
        yield Row(_CACHED, "ms", None, missing="git is not installed")
    else:
        with tempfile.TemporaryDirectory() as folder:
            project = make_project(Path(folder), pick(scale, SMALL, SMALL, 20))
            _make_repository(project)
            yield from _runs(project, pick(scale, 15, 7, 1))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as user:
        files = pick(scale, LARGE, LARGE, 50)
        yield from _digests(make_project(Path(folder), files), Path(user), files, pick(scale, 15, 7, 1))


def _runs(project: str, rounds: int) -> Iterator[Row]:
    argv = cli_argv("run", str(REPORT), "report", "--json", "--restart", "--allow", "read:.")
    _fill(argv, project)
    arms: dict[str, Round] = {
        _CACHED: each(_in(project, argv)),
        _BARE: each(program(BARE)),
        _WHOLE: each(_in(project, [*argv, "--no-cache"])),
    }
    taken = take_turns(arms, rounds)
    yield row(_CACHED, taken[_CACHED], "ms", {_BARE: taken[_BARE]}, [Aim("<= 250 ms", 250)])
    yield row(_WHOLE, taken[_WHOLE], "ms", {_BARE: taken[_BARE]})


def _fill(argv: list[str], project: str) -> None:
    """Run twice: what the second leaves says that all of it came from the cache."""
    _in(project, argv)()
    metrics = json.loads(_in(project, argv)().stdout)["results"]["metrics"]
    if metrics["cached"] != metrics["operationCount"]:
        raise RuntimeError(f"not everything came from the cache: {metrics}")


def _in(project: str, argv: list[str]) -> Callable[[], subprocess.CompletedProcess[bytes]]:
    return lambda: subprocess.run(argv, cwd=project, stdin=subprocess.DEVNULL, capture_output=True, check=True)


def _make_repository(project: str) -> None:
    """Give git something to say."""
    author = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
    for words in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "all"]):
        _in(project, ["git", *words])()


def _digests(project: str, user: Path, files: int, rounds: int) -> Iterator[Row]:
    def later() -> int:
        """Long after the last file was written: every one may be known by its times."""
        return newest + 2 * SETTLED_NS

    newest = max(path.lstat().st_ctime_ns for path in Path(project).rglob("*"))
    kept = Index()
    Trees(kept, now_ns=later).digest(project)
    with Folder.given(user) as folder:
        kept.save(folder)
        cold, warm, again = (
            f"digest of {files:,} files: read whole",
            "known, another process",
            "known, the same process",
        )
        known = Trees(kept, now_ns=later)
        arms: dict[str, Round] = {
            cold: each(lambda: Trees(Index(), now_ns=later).digest(project)),
            warm: each(lambda: Trees(Index.load(folder), now_ns=later).digest(project)),
            again: each(lambda: known.digest(project)),
        }
        taken = take_turns(arms, rounds)
    for what in arms:
        yield row(what, taken[what], "ms", {cold: taken[cold]})


if __name__ == "__main__":
    main(__doc__ or "", measure)
