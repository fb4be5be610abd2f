"""What a run has spent, over all processes that worked on it, held against its budgets. Pure, but for the clock.

Tokens and cost are known when an answer is there, so a budget may be exceeded by what is under way when it is reached.
What an operation spent whose worker, or whose run, was killed before it ended is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from sage_sandbox.errors import UsageError
from sage_sandbox.frozen import frozen
from sage_sandbox.outcome import Usage, added_up
from sage_sandbox.policy import format_duration
from sage_sandbox.providers import Price
from sage_sandbox.workflow.definition import Budgets

if TYPE_CHECKING:
    from sage_sandbox.store.reading import Found

REASON: Final = "budget_exceeded"


@frozen
class Spent:
    """What models were asked for, and for how long the run was running."""

    usage: tuple[Usage, ...] = ()
    time_s: float = 0.0

    @property
    def tokens(self) -> int:
        """All tokens that models read and wrote."""
        return sum(usage.total for usage in self.usage)

    def document(self) -> dict[str, Any]:
        """As the state has it; `read_spent` reads it."""
        return {"timeMs": round(self.time_s * 1000, 3), "usage": [asdict(usage) for usage in self.usage]}


def read_spent(raw: Mapping[str, Any]) -> Spent:
    """What an earlier process wrote down; nothing where it wrote nothing."""
    known = Usage.__dataclass_fields__
    usage = ({name: value for name, value in item.items() if name in known} for item in raw.get("usage", ()))
    return Spent(tuple(Usage(**item) for item in usage), float(raw.get("timeMs", 0)) / 1000)


def spent_before(found: Found) -> Spent:
    """What earlier processes spent: as the last of them wrote down with its last phase, or at its end.

    Each wrote the sum of all before it, so the most is the latest.
    """
    notes = [found.state.metrics.get("spent", {}), *(held.spent for held in found.checkpoints.values())]
    asked = (read_spent(note) for note in notes if note.get("usage"))
    most = max(asked, key=lambda spent: spent.tokens, default=Spent())
    ran_ms = max(float(found.state.metrics.get("totalTime", 0)), *(float(note.get("timeMs", 0)) for note in notes))
    return Spent(most.usage, ran_ms / 1000)


@frozen
class Excess:
    """A budget that is reached: what to say, and how to raise it."""

    text: str
    hint: str


class Ledger:
    """Books what one process's operations spend; for the run's thread. ``prices`` are by model, as far as known."""

    def __init__(
        self,
        budgets: Budgets = Budgets(),
        prices: Mapping[str, Price] = MappingProxyType({}),
        before: Spent = Spent(),
    ) -> None:
        self.budgets = budgets
        self._prices = prices
        self._usage = before.usage
        self._before_s = before.time_s
        self._running_s: Callable[[], float] = lambda: 0.0

    def begin(self, clock: Callable[[], float]) -> None:
        """From now on time is spent."""
        began = clock()
        self._running_s = lambda: clock() - began

    def add(self, usage: Iterable[Usage]) -> None:
        """Book what an attempt at an operation took."""
        self._usage = added_up((*self._usage, *usage))

    @property
    def spent(self) -> Spent:
        """All that was spent, up to this moment."""
        return Spent(self._usage, self._before_s + self._running_s())

    @property
    def cost(self) -> float | None:
        """What it cost; None where a model was asked of which that is not known."""
        prices = [self._prices.get(usage.asked) for usage in self._usage]
        known = [price for price in prices if price is not None]
        if len(known) < len(prices):
            return None
        return sum(price.of(usage) for price, usage in zip(known, self._usage, strict=True))

    def note(self) -> dict[str, Any]:
        """What is written down beside a phase that ended; empty where nobody will ask for it."""
        return self.spent.document() if self._usage or self.budgets != Budgets() else {}

    @property
    def time_left_s(self) -> float | None:
        """How long the run may go on; None where it has no such budget."""
        return None if self.budgets.time_s is None else self.budgets.time_s - self.spent.time_s

    def exceeded(self) -> Excess | None:
        """The budget that is reached, if one is. UsageError if one of cost cannot be held to."""
        budgets, spent = self.budgets, self.spent
        if budgets.tokens is not None and spent.tokens >= budgets.tokens:
            text = f"{spent.tokens:,} of {budgets.tokens:,} tokens are spent"
            return _excess(text, f"tokens={max(2 * budgets.tokens, spent.tokens + budgets.tokens)}")
        if budgets.cost is not None and (cost := self._known_cost()) >= budgets.cost:
            text = f"a cost of {cost:.4g} of {budgets.cost:g} is spent"
            return _excess(text, f"cost={max(2 * budgets.cost, cost + budgets.cost):.4g}")
        if budgets.time_s is not None and spent.time_s >= budgets.time_s:
            return time_excess(budgets.time_s)
        return None

    def _known_cost(self) -> float:
        if (cost := self.cost) is None:
            unknown = next(usage.asked for usage in self._usage if usage.asked not in self._prices)
            raise UsageError(f"a budget of cost needs to know what {unknown} costs")
        return cost


def time_excess(budget_s: float) -> Excess:
    """The budget of time is reached."""
    return _excess(f"{format_duration(budget_s)} of running are over", f"time={2000 * budget_s:.0f}")


def _excess(text: str, option: str) -> Excess:
    return Excess(f"{REASON}: {text}", f"to go on, raise it: resume with --budget {option}")
