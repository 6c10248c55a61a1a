"""What do limits cost that are never reached? A drain with them, against one without; nothing is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

import asyncpg

from bench import mails, program
from bench.contenders import CONCURRENCY, Postroom
from bench.noop_drain import Rounds, drain
from bench.program import Program
from bench.report import Result, spread, versions
from bench.servers import execute, running_postgres, server_version

QUESTION = (
    "mails a second through the whole queue, with a transport that does nothing, by the limits in force"
)
HIGH = "1000000/60s"

OFF = {"email.limit.global": "off", "email.limit.recipient": "off"}
BOTH = {"email.limit.global": HIGH, "email.limit.recipient": HIGH}
FURTHER = {
    "email.limit.domain.example.com": HIGH,
    "email.limit.sender.orders@shop.example.com": HIGH,
    "email.limit.type.order": HIGH,
    "email.limit.transport.maildir": HIGH,
}


@dataclass
class Limited:
    """One worker whose transport takes everything and does nothing, under some limits."""

    database_url: str
    name: str
    limits: Mapping[str, str]
    insert: str = "INSERT INTO email_queue (to_email, subject, html, email_type) VALUES ($1, $2, $3, 'order')"

    async def empty(self) -> None:
        await execute(
            self.database_url,
            "TRUNCATE public.email_queue, public.rate_limit_counters",
            "DELETE FROM postroom.settings WHERE amount IS NOT NULL AND key LIKE 'email.limit.%.%'",
            *(f"SELECT postroom.set_setting('{key}', '{value}')" for key, value in self.limits.items()),
        )

    async def unsent(self) -> int:
        connection = await asyncpg.connect(self.database_url)
        try:
            query = "SELECT count(*) FROM email_queue WHERE status <> 'sent'"
            unsent: int = await connection.fetchval(query)
        finally:
            await connection.close()
        return unsent

    def running(self, mode: str) -> AbstractContextManager[Program]:
        return program.running(
            "postroom_worker",
            {
                "database_url": self.database_url,
                "transport": "none",
                "sender": mails.SENDER,
                "concurrency": CONCURRENCY,
                "mode": mode,
            },
        )


def run(*, count: int = 10_000, rounds: int = 5) -> Result:
    """
    Measure in turns, so that whatever else the machine does hits all alike.

    Args:
        count: Mails in the queue, to a third as many recipients.
    """
    return asyncio.run(_run(count, rounds))


async def _run(count: int, rounds: int) -> Result:
    columns = ["limits", "mails/s", "of off", "CPU us a mail: worker", "PostgreSQL", "both, of off"]
    result = Result("limits", QUESTION, columns)
    with running_postgres() as server_url:
        url = await Postroom.make_database(server_url)
        contenders = [
            Limited(url, "off", OFF),
            Limited(url, f"both {HIGH}", BOTH),
            Limited(url, "and by domain, sender, type, transport", BOTH | FURTHER),
        ]
        result.settings |= {
            "queue": f"{count:,} mails of 2 KB of HTML to {count // 3:,} recipients",
            "figures": f"median of {rounds} rounds in turns (lowest-highest); ratios within a round",
            "PostgreSQL": f"{await server_version(url)}, fsync on",
            "versions": versions("postroom", "asyncpg"),
        }
        measured = {contender.name: Rounds() for contender in contenders}
        for turn in range(rounds):
            for place in range(len(contenders)):
                contender = contenders[(place + turn) % len(contenders)]
                await drain(contender, count, measured[contender.name])
    off = measured["off"]
    for name, own in measured.items():
        both = [sum(each) for each in zip(own.cpu_us, own.server_cpu_us, strict=True)]
        both_off = [sum(each) for each in zip(off.cpu_us, off.server_cpu_us, strict=True)]
        result.rows.append(
            [
                name,
                spread(own.rates),
                f"{_ratio(own.rates, off.rates):.2f}",
                f"{median(own.cpu_us):.0f}",
                f"{median(own.server_cpu_us):.0f}",
                f"{_ratio(both, both_off):.2f}",
            ]
        )
        result.measured[name] = vars(own)
    return result


def _ratio(ones: list[float], others: list[float]) -> float:
    return median(one / other for one, other in zip(ones, others, strict=True))
