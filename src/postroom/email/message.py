"""The e-mail as the house knows it: a row that was claimed and is to be sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID


@dataclass(slots=True)
class OutgoingEmail:
    """
    One claimed row of email_queue. Its rendering is a function of these values alone
    (docs/decisions/0006), so every attempt sends the same bytes.

    Attributes:
        from_email: The sender, `a@b.c` or `Name <a@b.c>`; the claim wrote POSTROOM_FROM into
            the row where it named none.
        text: The plain part; made from `html` where None.
        headers: Further headers, name to value.
        created_at: The Date header; rows of old callers may have none.
        is_too_large: Its html and text are so large that they were not read.
        attached: The bytes of its attachments, about; None where it has none.
        attachments: What the row has, as JSON; None until they are read, when the attempt is about to begin.
    """

    id: UUID
    to_email: str
    subject: str
    html: str
    from_email: str | None
    reply_to: str | None = None
    text: str | None = None
    headers: Mapping[str, object] = field(default_factory=dict)
    created_at: datetime | None = None
    attempts: int = 0
    max_attempts: int = 6
    email_type: str | None = None
    is_too_large: bool = False
    attached: int | None = None
    attachments: object = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Of its bodies and attachments: characters, or about as many bytes."""
        return len(self.html) + len(self.text or "") + (self.attached or 0)
