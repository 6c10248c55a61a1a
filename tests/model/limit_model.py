"""The limits of e-mails, for a time in which no slot comes back: who gets one, and who stands in a line."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.model.rows import Row

GLOBAL = "email:global"


def recipient_key(to: str | None) -> str:
    """The limiter's key of an address."""
    return f"email:recipient:{to}"


@dataclass(frozen=True)
class Book:
    """
    What is written of one key.

    Attributes:
        taken: Slots that were taken.
        planned: Up to which slot those who wait have tickets, and planned_high those of a higher priority.
        rule: The limit that the tickets were given under; under another one they are void.
    """

    taken: int = 0
    planned: int = 0
    planned_high: int = 0
    rule: str | None = None


@dataclass
class Limits:
    """The two limits that are in force; None where there is none."""

    total: int | None = None
    recipient: int | None = None

    @property
    def rule(self) -> str | None:
        """The recipients' limit as the rows name it that wait for it."""
        return None if self.recipient is None else value_of(self.recipient)

    def free(self, key: str, books: dict[str, Book]) -> int | None:
        """Slots that a key has left."""
        limit = self.total if key == GLOBAL else self.recipient
        return None if limit is None else max(limit - books.get(key, Book()).taken, 0)

    def is_line_full(self, key: str, book: Book) -> bool:
        """Whether as many stand in its line as it has slots in a window."""
        return (
            self.recipient is not None
            and book.rule == self.rule
            and book.planned - book.taken >= self.recipient
        )

    def waiting(self, row: Row, key: str) -> Row:
        """A mail that has got a place in a line, and with it a time."""
        return replace(
            row,
            status="pending",
            leased_by=None,
            due="future",
            next_retry="future",
            waits_for=f"limit:{key}",
            planned_under=self.rule,
        )

    def take_slots(
        self, mails: list[Row], books: dict[str, Book]
    ) -> tuple[list[Row | None], dict[str, Book]]:
        """
        A slot of every limit for each mail, in their order, all or none for each.

        Whoever has no ticket stands behind those with one, but passes them where its priority is above 0.

        Returns:
            What becomes of each mail that gets none (None: it has begun), and the books as they are then.
        """
        keys = {} if self.total is None else {GLOBAL: self.total}
        if self.recipient is not None:
            keys |= {recipient_key(mail.to): self.recipient for mail in mails}
        if not mails or not keys:
            return [None] * len(mails), {}
        old = {key: books.get(key, Book()) for key in keys}
        free = {key: max(limit - old[key].taken, 0) for key, limit in keys.items()}
        is_valid = {key: old[key].rule == self.rule for key in keys}
        line = {key: max(book.planned - book.taken, 0) * is_valid[key] for key, book in old.items()}
        high = {key: max(book.planned_high - book.taken, 0) * is_valid[key] for key, book in old.items()}
        taken = dict.fromkeys(keys, 0)
        waiting: list[Row | None] = []
        for mail in mails:
            own = recipient_key(mail.to)
            has_ticket = mail.planned_under == self.rule and mail.waits_for == f"limit:{own}" and own in keys
            is_high = mail.priority > 0
            if own in keys and free[own] <= (0 if is_high or has_ticket else line[own]):
                waiting.append(self.waiting(mail, own))
                if not has_ticket:
                    lengthened = high if is_high else line
                    lengthened[own] += 1
            elif GLOBAL in keys and free[GLOBAL] == 0:
                back = replace(mail, status="pending", leased_by=None, due=mail.next_retry or "past")
                if not has_ticket:
                    back = replace(back, waits_for=f"limit:{GLOBAL}", planned_under=None)
                waiting.append(back)
            else:
                waiting.append(None)
                for key in {own, GLOBAL} & keys.keys():
                    free[key] -= 1
                    taken[key] += 1
                    line[key] = max(line[key] - 1, 0)
                    high[key] = max(high[key] - 1, 0)
        after = {}
        for key, book in old.items():
            total = book.taken + taken[key]
            after[key] = replace(book, taken=total)
            if line[key] or high[key]:
                after[key] = Book(total, total + line[key], total + high[key], self.rule)
        return waiting, after


def value_of(limit: int | None) -> str:
    """A limit as a setting: no slot comes back while a test runs."""
    return "off" if limit is None else f"{limit}/1d"
