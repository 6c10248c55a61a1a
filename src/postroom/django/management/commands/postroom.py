"""
`manage.py postroom …`: the commands of `postroom`, with Django's settings and the project's handlers.

And one of its own: `take_over_post_office [--yes]`, see postroom.django.post_office.
"""

from __future__ import annotations

import sys
from argparse import REMAINDER
from typing import Any, ClassVar

from django.core.management.base import BaseCommand, CommandError

from postroom.cli.errors import DONE, FAILED, WRONG_USAGE
from postroom.cli.main import run
from postroom.cli.screen import note, print_line
from postroom.errors import PostroomError

APP = "postroom.django:room"
PROGRAM = "manage.py postroom"
TAKE_OVER = ("take_over_post_office", "take-over-post-office")
_TAKING_APP = {"up", "worker", "scheduler"}
_DJANGOS = ("--settings", "--pythonpath")


class Command(BaseCommand):
    """See the module."""

    help = "Postroom's own commands, such as worker, status, explain ID; --help lists them."
    requires_system_checks: ClassVar[list[str]] = []

    def add_arguments(self, parser: Any) -> None:
        """See Django's BaseCommand."""
        parser.add_argument("arguments", nargs=REMAINDER)

    def run_from_argv(self, argv: list[str]) -> None:
        """Leave every option to the command, but those that Django has taken already."""
        sys.exit(_run(_without_djangos(argv[2:])))

    def handle(self, *_: object, arguments: list[str] | None = None, **options: Any) -> None:
        """
        For call_command("postroom", "worker", "--drain").

        Raises:
            CommandError: The command failed; what it said is on stderr.
        """
        given = [*(arguments or ()), *(options.get("args") or ())]
        if code := _run(given):
            raise CommandError(f"postroom {' '.join(given)} failed", returncode=code)


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in TAKE_OVER:
        return _take_over(arguments[1:])
    if arguments and arguments[0] in _TAKING_APP and "--app" not in arguments:
        arguments = [arguments[0], "--app", APP, *arguments[1:]]
    return run(arguments, PROGRAM)


def _take_over(options: list[str]) -> int:
    from postroom.django.post_office import take_over

    if options not in ([], ["--yes"]):
        note(f"postroom: {TAKE_OVER[0]} takes --yes, and nothing else")
        return WRONG_USAGE
    try:
        taken = take_over(dry_run=not options)
    except PostroomError as error:
        note(f"postroom: {error}")
        return FAILED
    for line in taken.lines(done=bool(options)):
        print_line(line)
    if not options:
        print_line("nothing was changed: stop send_queued_mail everywhere, then add --yes")
    return DONE


def _without_djangos(arguments: list[str]) -> list[str]:
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in _DJANGOS:
            next(rest, None)
        elif not argument.startswith(tuple(f"{name}=" for name in _DJANGOS)):
            kept.append(argument)
    return kept
