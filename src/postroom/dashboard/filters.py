"""What a list is narrowed to, as it stands in a page's address: read, said, and written without one of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlencode

from starlette.requests import Request

from postroom.dashboard.site import ROOT
from postroom.queue.search import Filters
from postroom.spans import parse_moment
from postroom.wording import stamp

TEXT_CHARACTERS_MAX = 200
TIMES = (("", "Any time"), ("1h", "Last hour"), ("24h", "24 hours"), ("7d", "7 days"))
PLACES = ("after", "before")


@dataclass(frozen=True, slots=True)
class Chip:
    """A filter that is on: what it says, and the address without it."""

    label: str
    value: str
    without: str


class Asked:
    """
    What a page's address asks for.

    Args:
        path: Below the dashboard's root.
        fields: The texts that may be asked for besides `q`, by name: what people call them.
        kept: Other parameters of the page, which a filter leaves as they are.

    Attributes:
        filters: What is asked for; what is wrong is left out of it.
        errors: What is wrong, by the field's name.
    """

    def __init__(
        self, request: Request, path: str, fields: Mapping[str, str], kept: Sequence[str] = ()
    ) -> None:
        self.path = path
        self.fields = fields
        self._labels = {"q": "Search", **fields, "since": "Since", "until": "Until"}
        query = request.query_params
        self.values = {name: query.get(name, "").strip() for name in self._labels}
        self._kept = {name: query[name] for name in kept if query.get(name)}
        self._has_empty = any(not value.strip() for _, value in query.multi_items())
        self.errors: dict[str, str] = {}
        self.filters = self._read()

    @property
    def is_on(self) -> bool:
        """Whether anything is asked for."""
        return any(self.values.values())

    @property
    def is_detailed(self) -> bool:
        """Whether more is asked for than what stands open on the page: the search and the quick choices."""
        since, until = self.values["since"], self.values["until"]
        custom = bool(until) or since not in [name for name, _ in TIMES]
        return custom or bool(self.errors) or any(self.values[name] for name in self.fields)

    @property
    def canonical(self) -> str | None:
        """The address without what is empty, where a form has written that into it."""
        return self.link() if self._has_empty else None

    @property
    def chips(self) -> list[Chip]:
        """The filters that are on, each to be taken out."""
        return [
            Chip(label, self._said(name), self.link(**{name: ""}))
            for name, label in self._labels.items()
            if self.values[name]
        ]

    @property
    def times(self) -> list[tuple[str, str, bool]]:
        """The quick choices: name, address, and whether it is the one that is on."""
        since, until = self.values["since"], self.values["until"]
        return [
            (label, self.link(since=span, until=""), span == since and not until) for span, label in TIMES
        ]

    @property
    def kept(self) -> Mapping[str, str]:
        """What a form must bring along."""
        return self._kept

    def link(self, **changes: str) -> str:
        """The address of the list's first page with these changes; an empty value takes one out."""
        given = {**self._kept, **self.values, **changes}
        query = urlencode({name: value for name, value in given.items() if value})
        return f"{ROOT}{self.path}{'?' if query else ''}{query}"

    def without_filters(self) -> str:
        """The address of the whole list."""
        return self.link(**dict.fromkeys(self.values, ""))

    def _said(self, name: str) -> str:
        """A filter's value; a span with the time that it stands for at present."""
        value = self.values[name]
        moment = {"since": self.filters.since, "until": self.filters.until}.get(name)
        if moment is None or not value.isalnum():
            return value
        return f"{value} ago ({stamp(moment)})"

    def _read(self) -> Filters:
        texts = {name: self._text(name) for name in ("q", *self.fields)}
        now = datetime.now(UTC)
        since, until = self._moment("since", now), self._moment("until", now)
        if since is not None and until is not None and since >= until:
            self.errors["until"] = f"Until: no time lies between {stamp(since)} and {stamp(until)}."
        return Filters(
            text=texts.pop("q"),
            columns={name: text for name, text in texts.items() if text},
            since=since,
            until=until,
        )

    def _text(self, name: str) -> str:
        text = self.values[name]
        if len(text) > TEXT_CHARACTERS_MAX:
            self._say(name, f"at most {TEXT_CHARACTERS_MAX} characters can be looked for")
        elif "\0" in text:
            self._say(name, "a NUL stands in no e-mail and no event")
        return "" if name in self.errors else text

    def _moment(self, name: str, now: datetime) -> datetime | None:
        if not self.values[name]:
            return None
        try:
            return parse_moment(self.values[name], now, ends=name == "until")
        except ValueError as error:
            self._say(name, str(error))
            return None

    def _say(self, name: str, error: str) -> None:
        self.errors[name] = f"{self._labels[name]}: {error}."
