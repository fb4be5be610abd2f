from __future__ import annotations

import io

import pytest

from sage_sandbox.events import (
    Event,
    Notice,
    OperationSettled,
    OperationStarted,
    PhaseSettled,
    PhaseStarted,
    RunSettled,
    RunStarted,
    Weight,
)
from sage_sandbox.observe.progress import Progress, spoken, spoken_tokens
from sage_sandbox.outcome import Outcome, rejected


def lines(*events: Event, width: int = 200) -> list[str]:
    stream = io.StringIO()
    progress = Progress(stream, width=width)
    for event in events:
        progress(event)
    return stream.getvalue().splitlines()


def settled(phase: str, status: str, fulfilled: int, total: int, seconds: float = 1.0) -> PhaseSettled:
    return PhaseSettled(phase, phase.title(), status, fulfilled, total, seconds)  # type: ignore[arg-type]


def test_a_run_begins_and_ends_with_a_line() -> None:
    operation = OperationSettled("a", "x", Outcome("fulfilled", duration_s=0.12))

    assert lines(
        RunStarted("id", "f", "repo-report", 1, 1),
        PhaseStarted("a", "A", 1),
        OperationStarted("a", "x", 1),
        operation,
        settled("a", "completed", 1, 1),
        RunSettled("id", "f", "completed", 75.0),
    ) == [
        "▸ repo-report (1 phase, 1 operation)",
        "▸ a (1 operation)",
        "✓ a/x 120 ms",
        "✓ Workflow complete (1 min 15 sec, 1 operation, 0 reloads)",
    ]


def test_what_is_handed_back_is_said_at_the_end() -> None:
    weight = Weight(184_320, 8_192, 52_000, 35_000, personal=3)

    assert lines(RunSettled("id", "f", "completed", 75.0, weight=weight)) == [
        "✓ Workflow complete (1 min 15 sec, 0 operations, ≈35K tokens, 0 reloads)",
        "▸ 180 KiB produced, 8 KiB handed back (95 % less): --full prints whole results",
        "⚠ 3 pieces of personal data replaced in what is handed back",
    ]
    assert lines(RunSettled("id", "f", "failed", 75.0, weight=Weight(10, 10, 3, 3, personal=1)))[1:] == [
        "⚠ 1 piece of personal data replaced in what is handed back"
    ]


@pytest.mark.parametrize(
    ("tokens", "exact", "text"),
    [
        (1, True, "1 token"),
        (812, True, "812 tokens"),
        (1234, False, "≈1.2K tokens"),
        (35_000, True, "35K tokens"),
        (2_000_000, False, "≈2M tokens"),
    ],
)
def test_tokens_are_said_as_they_are_read(tokens: int, exact: bool, text: str) -> None:
    assert text == spoken_tokens(Weight(handed_tokens=tokens, exact=exact))


def test_no_personal_data_is_shown() -> None:
    outcome = rejected("error", "no mail for alice@example.org", "ask bob@example.org")

    assert ["✗ a/x no mail for [email]", "  hint: ask [email]", "⚠ call [phone]"] == lines(
        OperationSettled("a", "x", outcome), Notice("warning", "call +1 202 555 0123")
    )


def test_a_rejected_operation_says_why_and_what_to_do() -> None:
    outcome = rejected("limit", "memory limit 256 MiB exceeded", "add --limit memory=512M")

    assert lines(OperationSettled("survey", "history", outcome)) == [
        "✗ survey/history memory limit 256 MiB exceeded",
        "  hint: add --limit memory=512M",
    ]
    assert lines(OperationSettled("a", "x", rejected("cancelled", ""))) == ["✗ a/x cancelled"]


def test_a_degraded_phase_names_what_failed() -> None:
    failed = OperationSettled("research", "competitive-analysis", rejected("error", "no"))

    assert lines(failed, settled("research", "degraded", 3, 4))[1] == (
        "⚠ 1 of 4 research operations failed (competitive-analysis) · ✓ continuing with 3 results"
    )


def test_a_failed_phase_names_some_of_what_failed() -> None:
    failed = [OperationSettled("a", f"op-{n}", rejected("error", "no")) for n in range(7)]

    assert lines(*failed, settled("a", "failed", 0, 7))[-1] == (
        "✗ 7 of 7 a operations failed (op-0, op-1, op-2, op-3, op-4 and 2 more) · too few results to continue"
    )


def test_timeouts_and_cancels_say_what_is_kept() -> None:
    whole = OperationSettled("b", "x", rejected("timeout", "workflow timeout exceeded (1 min)"))

    assert lines(settled("a", "timeout", 1, 2, 600.02)) == [
        "✗ Phase timeout exceeded (a > 10 min) · ✓ 1 result of 2 kept"
    ]
    assert lines(settled("a", "timeout", 0, 2, 0.25)) == [
        "✗ Phase timeout exceeded (a > 250 ms) · ✓ 0 results of 2 kept"
    ]
    assert lines(whole, settled("b", "timeout", 0, 1))[-1] == "✗ Workflow timeout exceeded in b · ✓ 0 results of 1 kept"
    assert lines(settled("a", "cancelled", 2, 3)) == ["✗ a cancelled · ✓ 2 results of 3 kept"]


def test_blocked_phases_are_counted_at_the_end() -> None:
    blocked = [settled(f"p{n}", "blocked", 0, 1) for n in range(7)]

    assert lines(*blocked, RunSettled("id", "f", "failed", 2.0)) == [
        "⚠ 7 phases not started (p0, p1, p2, p3, p4 and 2 more)",
        "✗ Workflow failed (2 sec) · nothing was saved",
    ]


def test_another_attempt_is_said() -> None:
    assert lines(OperationStarted("a", "x", 2)) == ["▸ a/x again (attempt 2)"]


@pytest.mark.parametrize(("level", "mark"), [("info", "▸"), ("warning", "⚠"), ("error", "✗")])
def test_notices_are_marked(level: str, mark: str) -> None:
    assert lines(Notice(level, "text")) == [f"{mark} text"]  # type: ignore[arg-type]


def test_what_a_child_wrote_is_escaped_then_cut() -> None:
    outcome = rejected("error", "\x1b[2J\n\u202e" + "x" * 99)

    assert lines(OperationSettled("a", "x", outcome), width=30) == ["✗ a/x \\x1b[2J\\x0a\\u202exxxxxx…"]


def test_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Progress()(Notice("info", "here"))

    assert capsys.readouterr() == ("", "▸ here\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.1204, "120 ms"),
        (0.9999, "1 sec"),
        (4.21, "4.2 sec"),
        (59.97, "1 min"),
        (75, "1 min 15 sec"),
        (600, "10 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_read_easily(seconds: float, text: str) -> None:
    assert spoken(seconds) == text
