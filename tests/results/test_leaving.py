from __future__ import annotations

import json

import pytest

from sage_sandbox.events import Weight
from sage_sandbox.outcome import Attempt, Outcome, Violation, rejected
from sage_sandbox.results.leaving import STREAM_SHOWN, hand_back, weigh
from sage_sandbox.workflow.definition import Keep

MAIL = "alice@example.org"


def fulfilled(value: object, **more: object) -> Outcome:
    return Outcome("fulfilled", result=json.dumps(value).encode(), **more)  # type: ignore[arg-type]


def test_what_leaves_has_no_personal_data_and_says_how_much_it_had() -> None:
    outcome = Outcome(
        "rejected",
        "denied",
        f"no {MAIL}",
        f"ask {MAIL}",
        stdout=f"to {MAIL}\xff".encode("latin-1"),
        stderr=b"card 4111111111111111",
        violations=(Violation(f"read {MAIL}", f"read:{MAIL}"),),
        attempts=(Attempt("rejected", "error", f"no {MAIL}", 1.0),),
    )
    handed = hand_back(outcome)

    assert ("no [email]", "ask [email]", "to [email]\ufffd", "card [card]") == (
        handed.error,
        handed.hint,
        handed.stdout,
        handed.stderr,
    )
    assert (Violation("read [email]", f"read:{MAIL}"),) == handed.violations  # what to grant is said as it is typed
    assert (Attempt("rejected", "error", "no [email]", 1.0),) == handed.attempts
    assert {"email": 5, "card": 1} == handed.personal
    assert handed.value is None


def test_the_outcome_itself_stays_whole() -> None:
    outcome = fulfilled({"mail": MAIL, "more": ["x"] * 5000})
    before = outcome.result
    hand_back(outcome)

    assert before is outcome.result


def test_a_result_is_kept_as_its_template_says_or_whole() -> None:
    outcome = fulfilled({"a": list(range(5000)), "b": MAIL})

    assert {"b": "[email]"} == hand_back(outcome, Keep(fields=("b",))).value
    assert {"a": [0, "… 4,999 more"], "b": "[email]"} == hand_back(outcome, Keep(max_items=1)).value
    assert {"a": list(range(5000)), "b": "[email]"} == hand_back(outcome, Keep(max_items=1), whole=True).value
    assert len(json.dumps(hand_back(outcome).value)) < 2100


def test_of_what_was_printed_the_end_is_handed_back() -> None:
    text = "".join(f"line {n}\n" for n in range(1000))
    handed = hand_back(fulfilled(None, stdout=text.encode(), stderr=b"short"))

    assert f"… {len(text) - STREAM_SHOWN:,} characters before\n{text[-STREAM_SHOWN:]}" == handed.stdout
    assert "short" == handed.stderr
    assert text == hand_back(fulfilled(None, stdout=text.encode()), whole=True).stdout


def test_what_a_command_printed_is_its_result_and_not_handed_back_twice() -> None:
    outcome = fulfilled("hi", stdout=b"hi", exit_code=0)
    failed = Outcome("rejected", "error", "exit code 1", stdout=b"hi", exit_code=1)

    assert ("hi", "") == (hand_back(outcome).value, hand_back(outcome).stdout)
    assert ("hi", "hi") == (hand_back(outcome, whole=True).stdout, hand_back(failed).stdout)
    assert len('"hi"') == weigh([(outcome, None)]).produced


class TestWeight:
    @pytest.fixture(autouse=True)
    def _without_a_counter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sage_sandbox.results.tokens._counter", lambda: None)

    def test_of_what_is_small_it_is_the_same_on_both_sides(self) -> None:
        weight = weigh([(fulfilled({"files": 12}), None), (rejected("error", "no"), None)])

        assert Weight(15, 15, weight.produced_tokens, weight.produced_tokens) == weight
        assert weight.handed_tokens > 0

    def test_of_what_is_large_little_is_handed_back(self) -> None:
        weight = weigh([(fulfilled(["word"] * 50_000, stderr=b"e" * 5000), None)])

        assert weight.produced > 400_000
        assert weight.handed < 5_000
        assert weight.handed_tokens < weight.produced_tokens / 50
        assert not weight.exact

    def test_what_a_template_keeps_counts(self) -> None:
        outcome = fulfilled({"summary": "s", "all": ["x"] * 100})

        assert weigh([(outcome, Keep(fields=("summary",)))]).handed == len('{"summary": "s"}')

    def test_personal_data_is_counted(self) -> None:
        assert 2 == weigh([(fulfilled([MAIL]), None), (fulfilled(MAIL), None)]).personal

    def test_nothing_weighs_nothing(self) -> None:
        assert Weight() == weigh([])
