"""The benchmarks' own harness, on tiny sizes. Nothing here looks at how long anything took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from commands import run_cli

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
QUESTIONS = sorted(path.stem for path in (ROOT / "benchmarks").glob("bench_*.py"))
WITHOUT_A_SANDBOX = {"bench_help", "bench_planning"}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The harness, which is a folder beside the package and no part of it."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import harness, records, table

    return SimpleNamespace(harness=harness, records=records, table=table)


@pytest.fixture(scope="module")
def confines(tmp_path_factory: pytest.TempPathFactory) -> bool:
    folder = tmp_path_factory.mktemp("probe")
    return run_cli("exec", "--", "/usr/bin/env", cwd=folder, env={"HOME": str(folder)}).returncode == 0


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Where a benchmark puts its temporary files; empty again when it has ended."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    assert [] == sorted(folder.iterdir())


def run_module(module: str, *arguments: str, scratch: Path) -> subprocess.CompletedProcess[str]:
    """``python -m``, from the checkout as ``tox -e bench`` does it."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**env, "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def answer_row(bench: SimpleNamespace, *rows: Any) -> dict[str, Any]:
    return {"rows": json.loads(json.dumps([row.plain() for row in rows]))}


def test_arms_take_turns_and_the_warm_up_is_thrown_away(bench: SimpleNamespace) -> None:
    calls: list[str] = []

    def arm(name: str) -> list[float]:
        calls.append(name)
        return [float(len(calls))]

    taken = bench.harness.take_turns({"a": lambda: arm("a"), "b": lambda: arm("b")}, 2, warm_up=1)

    assert ["a", "b"] * 3 == calls
    assert {"a": [3.0, 5.0], "b": [4.0, 6.0]} == taken


def test_a_round_holds_a_value_for_each_call(bench: SimpleNamespace) -> None:
    calls: list[int] = []

    values = bench.harness.each(lambda: calls.append(1), 5)()

    assert (5, 5) == (len(values), len(calls))
    assert all(value >= 0 for value in values)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 3.0), (0.1, 1.4), (0.95, 4.8), (1.0, 5.0)])
def test_percentiles_lie_between_neighbours(bench: SimpleNamespace, share: float, expected: float) -> None:
    assert expected == pytest.approx(bench.harness.percentile([5, 1, 4, 2, 3], share))


def test_a_single_value_is_every_percentile(bench: SimpleNamespace) -> None:
    assert {7.0} == {bench.harness.percentile([7.0], share) for share in (0.1, 0.5, 0.95)}


def test_a_row_is_held_to_its_median_and_to_its_ratio(bench: SimpleNamespace) -> None:
    aim = bench.records.Aim
    row = bench.records.row(
        "what",
        [0.002, 0.002, 0.003],
        "ms",
        {"floor": [0.001], "other": [0.004]},
        [aim("<= 2 ms", 2), aim("<= 1.5x", 1.5, of="ratio"), aim(">= 1.9x", 1.9, of="ratio", at_most=False)],
    )

    assert (2.0, 2.0) == (row.spread.median, row.ratio)
    assert (True, False, True) == row.verdicts


def test_what_is_not_installed_is_named_and_not_judged(bench: SimpleNamespace) -> None:
    aim = bench.records.Aim("<= 0.1x", 0.1, of="ratio")
    row = bench.records.row("what", [1.0], "s", {"bwrap": "not installed"}, [aim])

    text = bench.table.table([answer_row(bench, row)])

    assert (None,) == row.verdicts
    assert "bwrap: not installed" in text


def test_the_table_shows_floor_ratio_aim_and_verdict(bench: SimpleNamespace) -> None:
    aim = bench.records.Aim
    row = bench.records.row("a thing", [0.004], "ms", {"floor": [0.002]}, [aim("<= 5 ms", 5), aim("<= 1 ms", 1)])
    missing = bench.records.not_measured("other thing", "MB", "needs root", [aim("<= 3 MB", 3)])

    head, rule, first, second, last = bench.table.table([answer_row(bench, row, missing)]).splitlines()

    assert [*bench.table.HEAD[:-1]] == cells(head)
    assert {"-", " "} == set(rule)
    assert ["a thing", "4.00 ms", "4.00 .. 4.00", "floor 2.00 ms", "2.00x", "<= 5 ms", "met"] == cells(first)
    assert ["<= 1 ms", "MISSED"] == cells(second)
    assert ["other thing", "needs root", "<= 3 MB", "-"] == cells(last)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0"), (0.01234, "0.0123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_figures_have_three_digits(bench: SimpleNamespace, value: float, shown: str) -> None:
    assert shown == bench.table.figure(value)


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_question_is_answered_by_one_line_of_json_with_its_floors(
    question: str, scratch: Path, confines: bool
) -> None:
    if question not in WITHOUT_A_SANDBOX and not confines:
        pytest.skip("operations cannot be confined here (see doctor)")

    done = run_module(f"benchmarks.{question}", "--scale", "tiny", scratch=scratch)

    assert 0 == done.returncode, done.stderr
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert "tiny" == answer["scale"]
    assert {"cores", "kernel", "python"} <= set(answer["machine"])
    assert answer["rows"]
    for row in answer["rows"]:
        assert row["missing"] or row["floors"], row
        for one in (row, *row["floors"]):
            difference = " above " in one["what"]
            assert one["missing"] or difference or one["spread"]["median"] > 0, one
            assert one["missing"] or one["spread"]["samples"] >= 1, one


def test_the_runner_prints_a_table_and_writes_json(scratch: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"

    done = run_module("benchmarks", "--scale", "tiny", "--only", "help", "--json", str(report), scratch=scratch)

    assert 0 == done.returncode, done.stderr
    (answer,) = json.loads(report.read_text())
    assert "help" == answer["benchmark"]
    assert "python3 -I -S -c pass" in done.stdout
    assert "<= 6x bare interpreter" in done.stdout


def test_an_unknown_benchmark_is_a_usage_error(scratch: Path) -> None:
    done = run_module("benchmarks", "--only", "nothing", scratch=scratch)

    assert 2 == done.returncode
    assert "warm_operation" in done.stderr


def test_the_profile_names_every_stretch_of_an_operation(scratch: Path, confines: bool) -> None:
    if not confines:
        pytest.skip("operations cannot be confined here (see doctor)")

    done = run_module("benchmarks.profile_child", "--times", "3", scratch=scratch)

    assert 0 == done.returncode, done.stderr
    for stretch in (
        "compile_steps",
        "request sent",
        "result to gone",
        "submit to result",
        "confine to ready",
        "Seccomp",
    ):
        assert stretch in done.stdout
