"""`postroom up`, `serve` and `worker`: the processes that stay, until they are told to end."""

from __future__ import annotations

from typing import Annotated

import typer

from postroom.cli.errors import WrongUsage

QUEUES = ("email",)
"""The queues that this version has workers for."""


def up() -> None:
    """Run all of postroom: migrate, HTTP, a worker. Prints `ready http://HOST:PORT` when it serves."""
    from postroom.cli.staying import stay, work_and_serve

    stay(work_and_serve)


def serve() -> None:
    """Serve HTTP alone. Prints `ready http://HOST:PORT` when it serves."""
    from postroom.cli import staying

    staying.stay(staying.serve)


def worker(
    queues: Annotated[
        str, typer.Option("--queues", metavar="NAMES", help="Which queues, with commas between them.")
    ] = "email",
    drain: Annotated[bool, typer.Option("--drain", help="End when nothing is due.")] = False,
) -> None:
    """Work on the queue until told to end."""
    for name in queues.split(","):
        if name.strip() not in QUEUES:
            known = ", ".join(QUEUES)
            raise WrongUsage(f"--queues: this version has no workers for {name.strip()!r}, only for {known}")
    from postroom.cli import staying

    staying.stay(staying.drain if drain else staying.work)
