"""`postroom up`, `serve`, `worker` and `scheduler`: the processes that stay, until they are told to end."""

from __future__ import annotations

from typing import Annotated

import typer

from postroom.cli.queue_names import QUEUES, queues_of

App = Annotated[
    str | None,
    typer.Option("--app", metavar="MODULE:ROOM", help="Your program, whose @room.on handlers are run."),
]


def up(app: App = None) -> None:
    """Run all of postroom. Prints `ready http://HOST:PORT` when it serves."""
    from postroom.cli.staying import stay, work_and_serve

    stay(work_and_serve, app)


def serve() -> None:
    """Serve HTTP alone. Prints `ready http://HOST:PORT` when it serves."""
    from postroom.cli import staying

    staying.stay(staying.serve)


def worker(
    queues: Annotated[
        str, typer.Option("--queues", metavar="NAMES", help="Which queues, with commas between them.")
    ] = ",".join(QUEUES),
    drain: Annotated[bool, typer.Option("--drain", help="End when nothing is due.")] = False,
    app: App = None,
) -> None:
    """Work on the queues until told to end."""
    names = queues_of("--queues", queues)
    from postroom.cli import staying

    staying.stay((staying.Drain if drain else staying.Work)(names), app)


def scheduler(app: App = None) -> None:
    """Run the jobs at their times until told to end; of many that run, one leads."""
    from postroom.cli import staying

    staying.stay(staying.schedule, app)
