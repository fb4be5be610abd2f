from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_sandbox.errors import NotGranted, UsageError
from sage_sandbox.grants import limits
from sage_sandbox.grants.limits import (
    effective_limits,
    machine_ceilings,
    parse_limit_option,
    parse_limit_options,
    workflow_limits,
)
from sage_sandbox.policy import GiB, Limits, MiB, ceilings
from sage_sandbox.workflow.definition import AskedLimits, Operation, Phase, Workflow

MOST = ceilings(8 * GiB)
NOTHING = AskedLimits()


class TestOptions:
    @pytest.mark.parametrize(
        ("expected", "text"),
        [
            (("memory", GiB), "memory=1G"),
            (("disk", 100), "disk=100"),
            (("cpu_s", 2.0), "cpu=2s"),
            (("cpu_s", 2.0), "cpu=2000"),
            (("pids", 64), "pids=64"),
            (("pids", 8), "pids=08"),
        ],
    )
    def test_an_option_is_a_limit_and_its_value(self, expected: tuple[str, float], text: str) -> None:
        assert expected == parse_limit_option(text)

    @pytest.mark.parametrize(
        ("hint", "text"),
        [
            ("did you mean memory?", "memry=1G"),
            ("did you mean pids?", "pid"),
            ("one of memory, cpu, pids, disk", "x=1"),
        ],
    )
    def test_an_unknown_name_is_refused_with_the_nearest(self, hint: str, text: str) -> None:
        with pytest.raises(UsageError, match="--limit does not know") as caught:
            parse_limit_option(text)

        assert hint == caught.value.hint

    def test_a_missing_value_is_said(self) -> None:
        with pytest.raises(UsageError, match="--limit memory needs a value"):
            parse_limit_option("memory")

    @pytest.mark.parametrize(
        "text",
        [
            "memory=",
            "memory=much",
            "memory=0",
            "cpu=0s",
            "cpu=fast",
            "pids=0",
            "pids=-1",
            "pids=1.5",
            "pids=²",
            "pids=" + "9" * 5000,
            "memory=" + "9" * 5000,
        ],
    )
    def test_a_value_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match=f"--limit {text.partition('=')[0]}: "):
            parse_limit_option(text)

    def test_several_options_are_one_record_and_the_last_holds(self) -> None:
        found = parse_limit_options(["memory=1G", "cpu=5s", "memory=2G"])

        assert AskedLimits(memory=2 * GiB, cpu_s=5.0) == found
        assert isinstance(found.memory, int)
        assert NOTHING == parse_limit_options([])


class TestEffective:
    def test_an_operation_that_says_nothing_gets_the_defaults(self) -> None:
        assert Limits() == effective_limits(NOTHING, None, NOTHING, MOST)

    def test_what_is_asked_within_the_ceilings_is_given(self) -> None:
        asked = AskedLimits(memory=GiB, cpu_s=1.5, pids=2, disk=MiB)

        assert Limits(GiB, 1.5, 2, MiB, 30.0) == effective_limits(asked, 30.0, NOTHING, MOST)

    def test_the_defaults_of_a_small_machine_are_its_ceilings(self) -> None:
        assert effective_limits(NOTHING, None, NOTHING, ceilings(256 * MiB)).memory == 128 * MiB

    def test_the_ceiling_itself_may_be_asked(self) -> None:
        asked = AskedLimits(MOST.memory, MOST.cpu_s, MOST.pids, MOST.disk)

        assert MOST == effective_limits(asked, MOST.timeout_s, NOTHING, MOST)

    def test_asking_for_more_is_not_granted_and_names_the_options(self) -> None:
        asked = AskedLimits(memory=5 * GiB, cpu_s=7200, pids=513, disk=4 * GiB + 1)

        with pytest.raises(NotGranted) as caught:
            effective_limits(asked, None, NOTHING, MOST, owner="survey/op-1")

        assert caught.value.missing == (
            "--limit memory=5G",
            "--limit cpu=7200s",
            "--limit pids=513",
            "--limit disk=4294967297",
        )
        assert "survey/op-1 asks for memory 5 GiB, the most is 4 GiB" in str(caught.value)
        assert "pids 513, the most is 512" in str(caught.value)
        assert "add --limit memory=5G --limit cpu=7200s" in caught.value.hint

    def test_a_timeout_above_a_day_has_no_option(self) -> None:
        with pytest.raises(NotGranted, match="timeout 48 h, the most is 24 h") as caught:
            effective_limits(NOTHING, 48 * 3600.0, NOTHING, MOST)

        assert caught.value.missing == ()
        assert caught.value.hint == "ask for less in the template"

    def test_an_option_raises_the_ceiling_and_is_the_new_default(self) -> None:
        overrides = AskedLimits(memory=6 * GiB)

        assert effective_limits(NOTHING, None, overrides, MOST).memory == 6 * GiB
        assert effective_limits(AskedLimits(memory=5 * GiB), None, overrides, MOST).memory == 5 * GiB

    def test_an_option_may_lower_the_ceiling(self) -> None:
        with pytest.raises(NotGranted) as caught:
            effective_limits(AskedLimits(memory=256 * MiB), None, AskedLimits(memory=128 * MiB), MOST)

        assert caught.value.missing == ("--limit memory=256M",)


class TestWorkflows:
    def test_every_operation_has_its_own_and_the_timeout_of_its_phase(self) -> None:
        one, two = Operation("a", "python", timeout_s=5.0), Operation("b", "python", limits=AskedLimits(pids=1))
        workflow = Workflow("w", (Phase("p", "P", (one, two), timeout_s=60.0),))

        found = workflow_limits(workflow, NOTHING, MOST)

        assert Limits(timeout_s=5.0) == found["p", "a"]
        assert Limits(pids=1, timeout_s=60.0) == found["p", "b"]

    def test_all_that_ask_for_too_much_are_named_and_one_option_is_enough(self) -> None:
        operations = tuple(Operation(str(n), "python", limits=AskedLimits(memory=n * GiB)) for n in (9, 10, 1))

        with pytest.raises(NotGranted) as caught:
            workflow_limits(Workflow("w", (Phase("p", "P", operations),)), NOTHING, MOST)

        assert "p/9 asks for memory 9 GiB" in str(caught.value)
        assert "p/10 asks for memory 10 GiB" in str(caught.value)
        assert caught.value.missing == ("--limit memory=10G",)


def test_the_ceilings_of_this_machine_are_half_its_memory() -> None:
    found = machine_ceilings()

    assert found.memory > 0
    assert ceilings(2 * found.memory) == found


@pytest.mark.parametrize("text", [None, "", "MemFree: 1 kB\n", "MemTotal: much kB\n"])
def test_memory_is_found_where_there_is_no_meminfo(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "meminfo"
    if text is not None:
        path.write_text(text)

    assert limits._memory() == limits._memory(path)


ASKED = st.builds(
    AskedLimits,
    memory=st.none() | st.integers(1, 1 << 45),
    cpu_s=st.none() | st.floats(0.001, 1e7),
    pids=st.none() | st.integers(1, 1_000_000),
    disk=st.none() | st.integers(1, 1 << 45),
)


@given(asked=ASKED, overrides=ASKED)
def test_adding_the_missing_options_is_enough(asked: AskedLimits, overrides: AskedLimits) -> None:
    try:
        effective_limits(asked, None, overrides, MOST)
    except NotGranted as error:
        added = parse_limit_options(option.removeprefix("--limit ") for option in error.missing)
        values = {
            field.name: getattr(added, field.name) or getattr(overrides, field.name) for field in fields(AskedLimits)
        }
        overrides = AskedLimits(**values)

    found = effective_limits(asked, None, overrides, MOST)

    assert all(getattr(asked, field.name) in (None, getattr(found, field.name)) for field in fields(AskedLimits))


@given(asked=ASKED, timeout_s=st.none() | st.floats(0.001, 1e6))
def test_nothing_above_a_ceiling_is_ever_given(asked: AskedLimits, timeout_s: float | None) -> None:
    try:
        found = effective_limits(asked, timeout_s, NOTHING, MOST)
    except NotGranted:
        return

    assert all(getattr(found, field.name) <= getattr(MOST, field.name) for field in fields(Limits))
