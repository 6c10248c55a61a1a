"""How many webhook events a second does the door store before it answers, and what does each cost?"""

from __future__ import annotations

import asyncio

from bench.http_posts import measure
from bench.report import Result

QUESTION = "webhook events a second that are stored before they are answered 200"


def run(*, count: int = 8_000, rounds: int = 3) -> Result:
    """
    Post events of 2 KB, signed as Stripe does, each with an id of its own.

    Args:
        count: Events a round.
    """
    result = Result("webhook_intake", QUESTION, [])
    asyncio.run(measure(result, "webhook", count=count, rounds=rounds))
    return result
