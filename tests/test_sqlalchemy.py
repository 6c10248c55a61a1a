"""room.send(connection=…) in the transactions of SQLAlchemy: sessions and connections, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from postroom import InvalidEmail, Room, SchemaError

SYNC = ["psycopg", "psycopg2"]
ASYNC = ["asyncpg", "psycopg"]


def rows(url: str) -> list[str]:
    with psycopg.connect(url) as db:
        return [row[0] for row in db.execute("SELECT to_email FROM email_queue ORDER BY to_email").fetchall()]


def engine_of(url: str, driver: str) -> Any:
    return create_engine(url.replace("postgresql://", f"postgresql+{driver}://"), poolclass=NullPool)


def async_engine_of(url: str, driver: str) -> Any:
    return create_async_engine(url.replace("postgresql://", f"postgresql+{driver}://"), poolclass=NullPool)


def mail(to: str) -> dict[str, Any]:
    return {"to": to, "subject": "Hi", "html": "<p>:name 100%</p>"}


@pytest.mark.parametrize("driver", SYNC)
async def test_a_session_holds_the_mail(database_url: str, driver: str) -> None:
    """What the session commits goes out; what it rolls back is none."""
    room = Room(database_url=database_url)
    with Session(engine_of(database_url, driver)) as session:
        session.execute(text("CREATE TABLE orders (id integer)"))
        await room.send(**mail("ada@example.com"), connection=session)
        assert rows(database_url) == []
        session.commit()
        await room.send(**mail("bob@example.com"), connection=session)
        session.rollback()
    assert rows(database_url) == ["ada@example.com"]


@pytest.mark.parametrize("driver", ASYNC)
async def test_an_async_session_holds_the_mail(database_url: str, driver: str) -> None:
    """The same for AsyncSession, and its scoped kind."""
    room = Room(database_url=database_url)
    engine = async_engine_of(database_url, driver)
    async with AsyncSession(engine) as session:
        await room.send(**mail("ada@example.com"), connection=session)
        assert rows(database_url) == []
        await session.commit()
        await room.send(**mail("bob@example.com"), connection=session)
        await session.rollback()
    scoped = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
    await room.send(**mail("cyd@example.com"), connection=scoped)
    await scoped.commit()
    await scoped.remove()
    assert rows(database_url) == ["ada@example.com", "cyd@example.com"]


async def test_connections_and_scoped_sessions_do_as_well(database_url: str) -> None:
    """Connection, AsyncConnection and scoped_session (Flask-SQLAlchemy's db.session is one)."""
    room = Room(database_url=database_url)
    engine = engine_of(database_url, "psycopg")
    with engine.begin() as connection:
        await room.send(**mail("ada@example.com"), connection=connection)
    async with async_engine_of(database_url, "asyncpg").begin() as connection:
        ids = await room.send_many([mail("bob@example.com"), mail("cyd@example.com")], connection=connection)
    scoped = scoped_session(sessionmaker(engine))
    await room.send(**mail("dan@example.com"), connection=scoped)
    scoped.commit()
    scoped.remove()
    assert len(ids) == 2
    assert rows(database_url) == [f"{name}@example.com" for name in ("ada", "bob", "cyd", "dan")]


@pytest.mark.parametrize("driver", [*SYNC, None])
async def test_a_caller_that_is_cancelled_has_his_connection_back(
    database_url: str, driver: str | None
) -> None:
    """A time-out while the statement waits for a key ends the statement; nobody else has the session then."""
    room = Room(database_url=database_url)
    keyed = {**mail("ada@example.com"), "idempotency_key": "order-17"}
    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await room.send(**keyed, connection=holder)
        with closing(
            Session(engine_of(database_url, driver)) if driver else psycopg.connect(database_url)
        ) as own:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(room.send(**keyed, connection=own), 0.5)
            own.rollback()
            await room.send(**mail("bob@example.com"), connection=own)
            own.commit()
        assert rows(database_url) == ["bob@example.com"]


async def test_many_are_one_statement(database_url: str) -> None:
    """As everywhere: a hundred mails are one statement, whichever way it goes."""
    engine = engine_of(database_url, "psycopg")
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    with Session(engine) as session:
        await Room(database_url=database_url).send_many(
            [mail(f"u{n}@example.com") for n in range(100)], connection=session
        )
        session.commit()
    assert len(statements) == 1
    assert len(rows(database_url)) == 100


async def _sync(url: str, driver: str, work: Callable[[Any], Any]) -> None:
    with Session(engine_of(url, driver)) as session:
        await work(session)


async def _async(url: str, driver: str, work: Callable[[Any], Any]) -> None:
    async with AsyncSession(async_engine_of(url, driver)) as session:
        await work(session)


@pytest.mark.parametrize(
    ("way", "driver"), [(_sync, each) for each in SYNC] + [(_async, each) for each in ASYNC]
)
async def test_what_the_database_says_is_the_same_whoever_asks(
    database_url: str, empty_database_url: str, way: Any, driver: str
) -> None:
    """What a person can mend is an error of ours with its text; others are SQLAlchemy's own."""
    room = Room(database_url=database_url)

    async def send(session: Any) -> None:
        await room.send(**mail("ada@example.com"), connection=session)

    with pytest.raises(SchemaError, match=r"run `postroom migrate`$"):
        await way(empty_database_url, driver, send)
    with psycopg.connect(database_url) as db:
        db.execute(
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                RAISE EXCEPTION 'to_email: is on our own list' USING ERRCODE = 'invalid_parameter_value';
            END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON email_queue FOR EACH ROW EXECUTE FUNCTION refuse()
            """
        )
    with pytest.raises(InvalidEmail, match=r"^to_email: is on our own list$"):
        await way(database_url, driver, send)
    with psycopg.connect(database_url) as db:
        db.execute("DROP TRIGGER refuse ON email_queue; ALTER TABLE email_queue ADD CHECK (false) NOT VALID")
    with pytest.raises(DBAPIError) as raised:
        await way(database_url, driver, send)
    assert isinstance(raised.value, IntegrityError)


async def test_another_database_is_refused() -> None:
    """A session of SQLite's cannot hold the mail."""
    room = Room(database_url="postgresql://nowhere/x")
    with Session(create_engine("sqlite://")) as session:
        with pytest.raises(TypeError, match="must be of PostgreSQL, not sqlite"):
            await room.send(**mail("ada@example.com"), connection=session)
        with pytest.raises(TypeError, match="or a session or connection of SQLAlchemy, not object"):
            await room.send(**mail("ada@example.com"), connection=object())
