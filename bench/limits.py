"""What do limits cost that are never reached? A drain with them, against one without; nothing is sent."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import asyncpg

from bench import mails, program
from bench.contenders import Postroom, fill
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
                "mode": mode,
            },
        )


@dataclass
class Rounds:
    """
    One contender's measurements, a value a round.

    Attributes:
        cpu_us: CPU time a mail, of the worker.
        server_cpu_us: The same of all of PostgreSQL.
    """

    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    server_cpu_us: list[float] = field(default_factory=list)


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
                await _drain(contender, count, measured[contender.name])
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


async def _drain(contender: Limited, count: int, into: Rounds) -> None:
    await fill(contender, count, count // 3)
    with contender.running("drain") as worker:
        connection = await asyncpg.connect(contender.database_url)
        try:
            before_s = _server_cpu_s(connection.get_server_pid())
            took_s, said = await asyncio.to_thread(worker.work)
            server_cpu_s = _server_cpu_s(connection.get_server_pid()) - before_s
        finally:
            await connection.close()
    if unsent := await contender.unsent():
        raise RuntimeError(f"{contender.name}: of {count} mails {unsent} are not marked as sent")
    into.rates.append(count / took_s)
    into.cpu_us.append(said["cpu_s"] * 1e6 / count)
    into.server_cpu_us.append(server_cpu_s * 1e6 / count)


def _ratio(ones: list[float], others: list[float]) -> float:
    return median(one / other for one, other in zip(ones, others, strict=True))


def _server_cpu_s(backend_pid: int) -> float:
    """CPU time of a server with its processes, also those that have ended: /proc knows, by a backend."""
    postmaster = _stat(str(backend_pid))[1]
    ticks = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            parent, own, children = _stat(process.name)[1:]
        except OSError:
            continue  # it has ended meanwhile
        if process.name == postmaster:
            ticks += int(own) + int(children)
        elif parent == postmaster:
            ticks += int(own)
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: str) -> tuple[str, str, str, str]:
    """State, parent, ticks of its own and ticks of the children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (
        fields[0],
        fields[1],
        str(int(fields[11]) + int(fields[12])),
        str(int(fields[13]) + int(fields[14])),
    )
