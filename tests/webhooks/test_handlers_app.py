"""`postroom worker --app`: a program's handlers, as the user starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import psycopg
import pytest

from tests.journey.programs import Programs
from tests.support.waiting import until_now

Db = psycopg.Connection[tuple[Any, ...]]

SHOP = """
    from postroom import Room
    room = Room()

    @room.on("stripe", "checkout.*", name="fulfil")
    async def fulfil(event, db):
        await db.execute("INSERT INTO effects VALUES ($1)", event.event_id)
"""
HOOKS = """
    def on_stripe(event, db):
        db.execute("INSERT INTO effects VALUES (%s)", (event.event_id,))
"""
SOURCE = """
    [webhooks.stripe]
    secrets = ["whsec_x"]
"""


@pytest.fixture
def db(database_url: str) -> Iterator[Db]:
    with psycopg.connect(database_url, autocommit=True) as one:
        one.execute("CREATE TABLE effects (event_id text)")
        yield one


@pytest.fixture
def programs(database_url: str, tmp_path: Path) -> Programs:
    write(tmp_path, "postroom.toml", SOURCE)
    return Programs(
        tmp_path, {"POSTROOM_DATABASE_URL": database_url, "POSTROOM_LOG": "json", "POSTROOM_PORT": "0"}
    )


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(dedent(text))


def insert(db: Db, event_id: str, event_type: str = "checkout.done", source: str = "stripe") -> None:
    """As an old caller does."""
    db.execute(
        """
        INSERT INTO webhook_retry_queue (webhook_type, webhook_event_id, payload)
        VALUES (%s, %s, jsonb_build_object('type', %s::text))
        """,
        (source, event_id, event_type),
    )


def statuses(db: Db) -> dict[str, str]:
    rows = db.execute("SELECT webhook_event_id, status FROM webhook_retry_queue").fetchall()
    return {str(row[0]): str(row[1]) for row in rows}


def effects(db: Db) -> list[str]:
    return [str(row[0]) for row in db.execute("SELECT event_id FROM effects ORDER BY 1").fetchall()]


def test_a_worker_runs_the_handlers_of_its_program(programs: Programs, db: Db) -> None:
    """The working folder is where its module is; one line on stdout counts."""
    write(programs.folder, "shop.py", SHOP)
    insert(db, "evt_1")
    insert(db, "evt_2", "invoice.paid")
    done = programs.run("worker", "--queues", "webhooks", "--app", "shop:room", "--drain")
    assert (done.returncode, done.stdout) == (0, "2 webhook events processed, 0 failed\n"), done.stderr
    assert effects(db) == ["evt_1"]
    assert db.execute("SELECT app, source, name, events FROM postroom.handlers").fetchall() == [
        ("shop:room", "stripe", "fulfil", ["checkout.*"])
    ]


def test_a_worker_without_the_program_leaves_its_events_alone(programs: Programs, db: Db) -> None:
    """It works on other sources; the events wait, with no attempt, until the program's worker is back."""
    write(programs.folder, "shop.py", SHOP)
    assert programs.run("worker", "--queues", "webhooks", "--app", "shop:room", "--drain").returncode == 0
    write(programs.folder, "postroom.toml", SOURCE + '    [webhooks.github]\n    secrets = ["x"]\n')
    insert(db, "evt_1")
    insert(db, "evt_2", source="github")
    done = programs.run("worker", "--queues", "webhooks", "--drain")
    assert (done.returncode, done.stdout) == (0, "1 webhook event processed, 0 failed\n"), done.stderr
    assert statuses(db) == {"evt_1": "pending", "evt_2": "processed"}
    assert programs.run("worker", "--queues", "webhooks", "--app", "shop:room", "--drain").returncode == 0
    assert statuses(db)["evt_1"] == "processed"
    assert effects(db) == ["evt_1"]


def test_a_running_worker_hears_of_a_program_that_came_later(programs: Programs, db: Db) -> None:
    """Until then it calls the events unhandled; from then on it leaves them alone."""
    with programs.running("worker", "--queues", "webhooks") as worker:
        worker.working()
        db.execute("INSERT INTO postroom.handlers VALUES ('shop:room', 'stripe', 'fulfil', '{*}')")
        until_now(lambda: bool(worker.events("webhook.handled_elsewhere")))
        insert(db, "evt_1")
        insert(db, "evt_2", source="unknown")
        until_now(lambda: bool(worker.events("webhook.left_alone")))
        until_now(lambda: statuses(db) == {"evt_1": "pending", "evt_2": "pending"})
    assert {str(row[0]) for row in db.execute("SELECT attempts FROM webhook_retry_queue")} == {"0"}


def test_up_and_worker_run_both_queues(programs: Programs, db: Db) -> None:
    """By default; a program's handlers too."""
    write(programs.folder, "shop.py", SHOP)
    for command in ("up", "worker"):
        with programs.running(command, "--app", "shop:room") as program:
            until_now(lambda: len(program.events("worker.started")) == 2)
            queues = {event["queue"] for event in program.events("worker.started")}
            assert queues == {"email", "webhook"}
            insert(db, f"evt_{command}")
            until_now(lambda: "pending" not in statuses(db).values())
    assert effects(db) == ["evt_up", "evt_worker"]


def test_a_function_of_postroom_toml_runs_in_any_worker(programs: Programs, db: Db) -> None:
    """No --app is needed: the settings name it."""
    handler = '[[webhooks.stripe.handlers]]\nname = "shop"\npython = "hooks:on_stripe"\n'
    (programs.folder / "postroom.toml").write_text(dedent(SOURCE) + handler)
    write(programs.folder, "hooks.py", HOOKS)
    insert(db, "evt_1")
    done = programs.run("worker", "--queues", "webhooks", "--drain")
    assert done.returncode == 0, done.stderr
    assert (effects(db), statuses(db)) == (["evt_1"], {"evt_1": "processed"})


@pytest.mark.parametrize(
    ("app", "shop", "code", "told"),
    [
        ("shop", SHOP, 2, "write it as module:name, such as shop.hooks:room; modules here: shop"),
        ("nowhere:room", SHOP, 2, "there is no module nowhere in"),
        ("nowhere:room", SHOP, 2, "; modules here: shop"),
        ("shop:nothing", SHOP, 2, "module shop has no nothing; its rooms: shop:room"),
        ("shop:Room", SHOP, 2, "it is no Room, but type; its rooms: shop:room"),
        ("shop:room", "import nowhere", 1, "ModuleNotFoundError: No module named 'nowhere'"),
        ("shop:room", "1 / 0", 1, "ZeroDivisionError: division by zero ("),
        ("shop:room", "raise SystemExit(3)", 1, "SystemExit: 3"),
        ("shop:room", "def (", 1, "SyntaxError: "),
    ],
)
def test_a_program_that_is_not_there_or_cannot_be_imported_is_one_line(
    programs: Programs, app: str, shop: str, code: int, told: str
) -> None:
    """Exit 2 and what there is, or 1 and where it went wrong; no traceback."""
    write(programs.folder, "shop.py", shop)
    done = programs.run("worker", "--app", app, "--drain")
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"postroom: --app {app}: ")
    assert told in line


def test_a_function_that_is_not_there_ends_the_worker_with_one_line(programs: Programs) -> None:
    """It names the handler."""
    handler = '[[webhooks.stripe.handlers]]\nname = "shop"\npython = "hooks:nothing"\n'
    (programs.folder / "postroom.toml").write_text(dedent(SOURCE) + handler)
    write(programs.folder, "hooks.py", HOOKS)
    done = programs.run("worker", "--drain")
    assert done.returncode == 1
    assert (
        "handler 'shop' of stripe, python = hooks:nothing: module hooks has no nothing"
        in (done.stderr.splitlines()[-1])
    )


def test_a_plain_function_without_psycopg_is_told_what_to_install(programs: Programs) -> None:
    """Before any event fails by it."""
    blocked = programs.folder / "psycopg.py"
    blocked.write_text("raise ImportError('not installed')")
    write(programs.folder, "shop.py", SHOP.replace("async def", "def").replace("await ", ""))
    programs.settings["PYTHONPATH"] = os.pathsep.join([str(programs.folder)])
    done = programs.run("worker", "--app", "shop:room", "--drain")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("write it as async def, or install postroom[psycopg]")


def test_two_programs_with_handlers_of_one_source_are_refused(programs: Programs, db: Db) -> None:
    """Neither could finish an event alone; the line names the other and the way out."""
    write(programs.folder, "shop.py", SHOP)
    write(programs.folder, "other.py", SHOP.replace("fulfil", "other"))
    assert programs.run("worker", "--app", "shop:room", "--drain").returncode == 0
    done = programs.run("worker", "--app", "other:room", "--drain")
    assert done.returncode == 1
    assert "shop:room has handlers of the same source" in done.stderr.splitlines()[-1]
    assert "postroom webhooks forget shop:room" in done.stderr.splitlines()[-1]
    forgotten = programs.run("webhooks", "forget", "shop:room")
    assert (forgotten.returncode, forgotten.stdout) == (0, "forgotten: fulfil of stripe\n")
    assert programs.run("worker", "--app", "other:room", "--drain").returncode == 0
    unknown = programs.run("webhooks", "forget", "shop:room")
    assert unknown.returncode == 2
    assert unknown.stderr == "postroom: no program 'shop:room' has registered handlers; known: other:room\n"


def test_an_event_that_waits_for_a_program_says_so(programs: Programs, db: Db) -> None:
    """`explain` and `doctor` name the program, how it is started, and what to do where it is gone."""
    db.execute("INSERT INTO postroom.handlers VALUES ('shop:room', 'stripe', 'fulfil', '{*}')")
    insert(db, "evt_1")
    db.execute("UPDATE webhook_retry_queue SET due_at = now() - interval '1 hour' RETURNING id")
    row = db.execute("SELECT id FROM webhook_retry_queue").fetchone()
    assert row is not None
    with programs.running("worker", "--queues", "webhooks") as worker:
        worker.working()
        explained = programs.run("explain", str(row[0])).stdout
        found = programs.run("doctor").stdout
        elsewhere = worker.events("webhook.handled_elsewhere")
    assert "Only a worker with --app shop:room takes it" in explained
    assert "postroom webhooks forget shop:room" in explained
    assert "1 event waits for a worker with --app shop:room, for 1 h" in " ".join(found.split())
    assert elsewhere[0]["app"] == "shop:room"


def test_a_new_version_of_a_program_replaces_its_handlers(programs: Programs, db: Db) -> None:
    """What it no longer has is forgotten."""
    write(programs.folder, "shop.py", SHOP)
    assert programs.run("worker", "--app", "shop:room", "--drain").returncode == 0
    write(programs.folder, "shop.py", SHOP.replace('name="fulfil"', 'name="fulfil_2"'))
    assert programs.run("worker", "--app", "shop:room", "--drain").returncode == 0
    assert db.execute("SELECT name FROM postroom.handlers").fetchall() == [("fulfil_2",)]
