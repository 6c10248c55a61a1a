"""The queues that there are workers for, as they are written on the command line."""

from __future__ import annotations

from postroom.cli.errors import WrongUsage

QUEUES = ("email", "webhooks")

_ALSO = {"emails": "email", "webhook": "webhooks"}
"""What they are called by `postroom pause`, and in the tables."""


def queues_of(option: str, text: str) -> frozenset[str]:
    """What an option says: names with commas between them."""
    names = [_ALSO.get(name.strip(), name.strip()) for name in text.split(",")]
    for name in names:
        if name not in QUEUES:
            raise WrongUsage(f"{option}: there is no queue {name!r}, only {', '.join(QUEUES)}")
    return frozenset(names)
