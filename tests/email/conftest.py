"""Rows for the tests of e-mail."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from postroom.email.message import OutgoingEmail

NewEmail = Callable[..., OutgoingEmail]


@pytest.fixture
def new_email() -> NewEmail:
    """Make a row with an id of its own; any of its columns may be given."""

    def make(**columns: Any) -> OutgoingEmail:
        row: dict[str, Any] = {
            "id": uuid4(),
            "to_email": "ada@example.com",
            "subject": "Your order",
            "html": "<p>Thank you.</p>",
            "from_email": "Shop <shop@example.org>",
            "text": "Thank you.",
            "created_at": datetime(2026, 3, 1, 12, 30, 5, tzinfo=UTC),
        }
        return OutgoingEmail(**(row | columns))

    return make
