"""`postroom`: the commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import io
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from postroom.cli import (
    alerts,
    audit,
    cleanup,
    cron,
    dead_letters,
    doctor,
    explain,
    key,
    migrate,
    pause,
    psql,
    running,
    send,
    settings,
    stats,
    status,
    webhooks,
)
from postroom.cli.errors import FAILED, WRONG_USAGE, WrongUsage, describe
from postroom.cli.screen import PROGRAM, is_terminal, note, print_line, speak_as

_ORDER = (
    "up",
    "migrate",
    "serve",
    "worker",
    "scheduler",
    "send",
    "status",
    "stats",
    "explain",
    "dead-letters",
    "pause",
    "resume",
    "settings",
)


class _InOrder(TyperGroup):
    """The commands in the order in which one meets them; Typer puts groups behind all others."""

    def list_commands(self, ctx: Any) -> list[str]:
        rest = [name for name in super().list_commands(ctx) if name not in _ORDER]
        return [*_ORDER, *rest]


app = typer.Typer(
    name="postroom",
    cls=_InOrder,
    help="E-mails and webhooks that are never lost: a post room in front of PostgreSQL.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if is_terminal() else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("up")(running.up)
app.command("migrate")(migrate.migrate)
app.command("serve")(running.serve)
app.command("worker")(running.worker)
app.command("scheduler")(running.scheduler)
app.command("send")(send.send)
app.command("status")(status.status)
app.command("stats")(stats.stats)
app.command("explain")(explain.explain)
app.add_typer(dead_letters.app, name="dead-letters")
app.command("pause")(pause.pause)
app.command("resume")(pause.resume)
app.add_typer(settings.app, name="settings")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(cron.app, name="cron")
app.add_typer(alerts.app, name="alerts")
app.command("cleanup")(cleanup.cleanup)
app.command("audit")(audit.audit)
app.command("psql", context_settings=psql.CONTEXT)(psql.psql)
app.command("doctor")(doctor.doctor)
app.add_typer(key.app, name="key")


@app.command("version")
def version() -> None:
    """Print the version."""
    from postroom.version import VERSION

    print_line(f"postroom {VERSION}")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise WrongUsage("give a command")


def main() -> NoReturn:
    """Run one command and end the process."""
    # Closed by who started us, as in `postroom status >&-`: then they are None.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale that cannot show a subject stops nothing
    _forget_a_closed_home()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or FAILED
        _leave_stdout(error)
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(code)  # everything is closed: taking the interpreter apart would cost 50 ms more


def _forget_a_closed_home() -> None:
    """
    Have no HOME where it cannot be entered, as under systemd's ProtectHome or after runuser.

    asyncpg and libpq look there for a client certificate, and connect to nothing when they may not look.
    """
    try:
        Path.home().joinpath(".postgresql/postgresql.crt").stat()
    except PermissionError:
        os.environ["HOME"] = "/nonexistent"
    except (OSError, RuntimeError):  # not there: nothing to forget
        return


def run(arguments: list[str], program: str = PROGRAM) -> int:
    """
    Run one command; whatever happens, the answer is an exit code, and on stderr at most one line.

    Args:
        program: What a person writes to run it.
    """
    speak_as(program)
    try:
        result = app(arguments, prog_name=program, standalone_mode=False)
    except BrokenPipeError as error:
        _leave_stdout(error)
        return FAILED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else FAILED
    except typer.Abort:
        return _told("interrupted", FAILED)
    except typer.TyperException as error:
        return _told_usage(error)
    except BaseException as error:
        if os.environ.get("POSTROOM_LOG_LEVEL", "").lower() == "debug":
            traceback.print_exception(error)
        return _told(*describe(error))
    code = result if isinstance(result, int) else 0
    return _told("interrupted", FAILED) if code == _INTERRUPTED else code


_INTERRUPTED = 130  # what Typer makes of Ctrl-C


def _told(line: str, code: int) -> int:
    note(f"postroom: {line}")
    return code


def _told_usage(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "postroom"
    message = (
        error.format_message().rstrip(".").replace("Value error, ", "")
    )  # Typer's, before each wrong choice
    return _told(f"{message}; see '{command} --help'", WRONG_USAGE)


def _leave_stdout(error: OSError) -> None:
    """Nobody reads any more, or the disk is full: let the interpreter's own flush at exit say nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        note(f"postroom: the output could not be written: {error.strerror}")
