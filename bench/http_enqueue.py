"""How many e-mails a second does POST /functions/v1/send-email queue, and what does each cost?"""

from __future__ import annotations

import asyncio

from bench.http_posts import measure
from bench.report import Result

QUESTION = "e-mails a second that are queued by HTTP (use_queue) before they are answered 200"


def run(*, count: int = 8_000, rounds: int = 3) -> Result:
    """
    Post e-mails of 2 KB to a recipient each, without a key.

    Args:
        count: E-mails a round.
    """
    result = Result("http_enqueue", QUESTION, [])
    asyncio.run(measure(result, "email", count=count, rounds=rounds))
    return result
