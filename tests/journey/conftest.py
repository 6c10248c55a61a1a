"""What journeys share: programs that are told where a fresh database is."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.journey.mails import SENDER
from tests.journey.programs import Programs

SERVICE_KEY = "service-key-of-the-journeys"


@pytest.fixture
def programs(database_url: str, tmp_path: Path) -> Programs:
    """postroom's programs on a fresh migrated database, without limits; a test adds its transport."""
    with psycopg.connect(database_url, autocommit=True) as db:
        for key in ("email.limit.global", "email.limit.recipient"):
            db.execute("SELECT postroom.set_setting(%s, 'off')", (key,))
    return Programs(
        tmp_path,
        {
            "POSTROOM_DATABASE_URL": database_url,
            "POSTROOM_FROM": SENDER,
            "POSTROOM_SERVICE_KEY": SERVICE_KEY,
            "POSTROOM_PORT": "0",
            "POSTROOM_LOG": "json",
        },
    )
