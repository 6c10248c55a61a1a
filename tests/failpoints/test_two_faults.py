"""Workers that are broken twice: the costs of two faults add up, and no more."""

from __future__ import annotations

from functools import partial

import pytest

from tests.failpoints.lanes import Bench, run_all
from tests.failpoints.table import EMAIL, WEBHOOK, Case, Loss
from tests.failpoints.two_faults import Pair, break_twice, deaths, losses

ENGINE = (
    "worker.register.after",
    "claim.after",
    "begin.before",
    "begin.after",
    "settle.before",
    "settle.after",
)
MAILS = deaths((*ENGINE, "smtp.content.before", "smtp.content.after", "attempt.ended")) + losses(
    {
        "claim": [Case(point, "kill") for point in ("begin.after", "smtp.content.after", "settle.after")],
        "begin": [Case(point, "kill") for point in ("attempt.after", "settle.before", "settle.after")],
        "settle": [
            Case("settle.before", "kill", turn=2),
            Case("settle.after", "kill"),
        ],  # when it is repeated
    }
)
EVENTS = deaths((*ENGINE, "handler.after", "async_handler.mark", "url_handler.answered")) + losses(
    {
        "claim": [Case(point, "kill") for point in ("begin.after", "async_handler.effect", "settle.after")],
        "begin": [Case(point, "kill") for point in ("plain_handler.mark", "settle.before", "settle.after")],
        "settle": [Case("settle.before", "kill", turn=2), Case("settle.after", "kill")],
    }
)


def _some(pairs: list[Pair], count: int) -> list[Pair]:
    """As many of them, spread over all; each lost connection is among them once."""
    lost = {str(pair[0]): pair for pair in pairs if isinstance(pair[0].fault, Loss)}
    others = [pair for pair in pairs if pair[0].fault == "kill"]
    return [*lost.values(), *others[:: len(others) // (count - len(lost))]]


@pytest.mark.timeout(300)
async def test_two_faults_cost_no_more_than_each_by_itself(bench: Bench) -> None:
    """Some pairs of deaths, and of a lost connection with a death, for mails and for events."""
    mails = [
        (" then ".join(map(str, pair)), partial(break_twice, bench, EMAIL, pair)) for pair in _some(MAILS, 14)
    ]
    events = [
        (" then ".join(map(str, pair)), partial(break_twice, bench, WEBHOOK, pair))
        for pair in _some(EVENTS, 10)
    ]
    await run_all(mails + events)


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_all_pairs_of_faults_cost_no_more_than_each_by_itself(bench: Bench) -> None:
    """Every pair of the table."""
    await run_all((" then ".join(map(str, pair)), partial(break_twice, bench, EMAIL, pair)) for pair in MAILS)
    await run_all(
        (" then ".join(map(str, pair)), partial(break_twice, bench, WEBHOOK, pair)) for pair in EVENTS
    )
