"""What was promised to callers and providers, written down outside of the database under test."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Promises:
    """
    Tokens of mails and ids of events, by what their senders were told. Filled by the traffic's thread.

    Attributes:
        committed: Mails whose commit was acknowledged, and the row's id.
        rolled_back: Mails whose transaction was rolled back: they must never be seen.
        unknown: Mails whose commit had no answer and was not repeated: they may be there or not.
        answered: Events that were answered 200.
        offered: Events that were posted at all, and the SHA-256 of their bytes.
        with_files: Mails that were given a file, where their door takes some.
        broken: What was told and cannot be, such as two ids for one key; and calls that were told nothing.
        counts: Of what the traffic did, by kind.
    """

    committed: dict[str, str] = field(default_factory=dict)
    rolled_back: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    offered: dict[str, str] = field(default_factory=dict)
    with_files: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def commit(self, token: str, email_id: str) -> None:
        """An enqueue was acknowledged; a second time it must be with the same id."""
        before = self.committed.setdefault(token, email_id)
        if before != email_id:
            self.broken.append(f"{token} has the ids {before} and {email_id}")
        self.unknown.discard(token)
