"""Django on a fresh migrated database, and what a worker makes of the mails that it queued."""

from __future__ import annotations

import asyncio
import mailbox
from collections.abc import Callable, Iterator
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path

import pytest

from postroom import Room
from postroom.settings import Settings, use_settings
from tests.django import project
from tests.support.postgres import PostgresServer

project.configure()

from django.core.management import call_command  # noqa: E402  Django's settings come first

from postroom.django.conf import DjangoSettings  # noqa: E402

Sent = Callable[[], list[EmailMessage]]


@pytest.fixture(scope="session")
def _django_template(postgres_server: PostgresServer, _migrated_template: str) -> str:
    """A database with the tables of the tests' project, that others are copied from."""
    name = postgres_server.create_database(template=_migrated_template)
    use_settings(DjangoSettings)
    with project.database(postgres_server.url_of(name)):
        call_command("migrate", verbosity=0)
    use_settings(Settings)
    return name


@pytest.fixture
def database_url(postgres_server: PostgresServer, _django_template: str) -> Iterator[str]:
    """A fresh database in which `manage.py migrate` has run."""
    name = postgres_server.create_database(template=_django_template)
    yield postgres_server.url_of(name)
    postgres_server.drop_database(name)


@pytest.fixture(autouse=True)
def _django_database(database_url: str) -> Iterator[None]:
    """Every test of Django's has a migrated database of its own, and Django's settings."""
    use_settings(DjangoSettings)
    with project.database(database_url):
        yield
    use_settings(Settings)


@pytest.fixture
def sent(database_url: str, tmp_path: Path) -> Sent:
    """Lets a worker send what is due, and returns what has arrived so far, oldest first."""

    def work() -> list[EmailMessage]:
        asyncio.run(drain(database_url, tmp_path / "mail"))
        return arrived(tmp_path / "mail")

    return work


async def drain(database_url: str, folder: Path) -> None:
    """One worker, until nothing is due."""
    async with Room(database_url=database_url, transport=f"maildir:{folder}") as room:
        await room.email_engine().run_pass(until_nothing_due=True)


def arrived(folder: Path) -> list[EmailMessage]:
    """The mails in a maildir, by their recipients."""
    parser = BytesParser(EmailMessage, policy=policy.default)
    box = mailbox.Maildir(folder, create=True)
    found = [parser.parsebytes(box.get_bytes(key)) for key in box.keys()]  # noqa: SIM118  it iterates over mails
    return sorted(found, key=lambda mail: str(mail["To"]))
