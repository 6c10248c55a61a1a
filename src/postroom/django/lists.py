"""
The lists of the admin pages: one of each state, in an order that an index has, with the columns it needs.

None is of all rows, none is counted beyond COUNTED_MAX, and none reads the bodies of what it shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.db.models.expressions import RawSQL

from postroom.queue.parts import REASONS

COUNTED_MAX = 10_000

# As the index of claims has it.
_DUE = RawSQL("COALESCE(due_at, next_retry_at, '-infinity'::timestamptz)", [])


@dataclass(frozen=True)
class State:
    """A list: which rows, in which order; and which columns besides what a row is about."""

    name: str
    title: str
    statuses: tuple[str, ...]
    order: tuple[Any, ...]
    columns: tuple[str, ...]

    def of(self, rows: QuerySet) -> QuerySet:
        """The list."""
        wanted = Q(status__in=self.statuses) if len(self.statuses) > 1 else Q(status=self.statuses[0])
        return rows.filter(wanted).order_by(*self.order)


def states(done: str) -> list[State]:
    """The lists of a queue; the first one is shown where none is asked for."""
    return [
        State(
            "dead",
            "Dead letters",
            ("dead_letter",),
            ("-failed_at",),
            ("error", "dead_reason", "failed_at"),
        ),
        State(
            "waiting",
            "Waiting",
            ("pending", "processing"),
            ("-priority", _DUE),
            ("status", "waits_for", "due", "attempts"),
        ),
        State("done", done.capitalize(), (done,), (f"-{done}_at",), ("attempts", f"{done}_at")),
        State("discarded", "Discarded", ("failed",), ("-failed_at",), ("error", "dead_reason", "failed_at")),
    ]


OF_ANY_STATE = ("status", "error", "created_at")
"""Columns where an id is looked for, which is found in whatever list."""


def state_of(parameters: Any, done: str) -> State:
    """The list that a request asks for."""
    first, *others = states(done)
    return next((state for state in others if state.name == parameters.get("state")), first)


def id_of(term: str) -> UUID | None:
    """The id that a search is for; None where it is for a text."""
    try:
        return UUID(term.strip())
    except ValueError:
        return None


class StateFilter(admin.SimpleListFilter):
    """One list at a time: there is none of all rows, which no index has in order."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002
        """See Django's SimpleListFilter."""
        self.done = model_admin.queue.done
        return [(state.name, state.title) for state in states(self.done)]

    def choices(self, changelist: Any) -> Iterator[dict[str, Any]]:
        """Without "All"."""
        for name, title in self.lookup_choices:
            yield {
                "selected": name == self.chosen.name,
                "query_string": changelist.get_query_string({self.parameter_name: name}),
                "display": title,
            }

    @property
    def chosen(self) -> State:
        """The list that is shown."""
        return state_of({"state": self.value()}, self.done)

    def queryset(self, request: Any, queryset: QuerySet) -> QuerySet:  # noqa: ARG002
        """See Django's SimpleListFilter."""
        return self.chosen.of(queryset)


class ReasonFilter(admin.SimpleListFilter):
    """Why postroom has given a row up."""

    title = "reason"
    parameter_name = "reason"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002
        """See Django's SimpleListFilter."""
        return [(reason, reason) for reason in REASONS]

    def queryset(self, request: Any, queryset: QuerySet) -> QuerySet:  # noqa: ARG002
        """See Django's SimpleListFilter."""
        return queryset.filter(dead_reason=self.value()) if self.value() else queryset


class BoundedPaginator(Paginator):
    """Counts no further than COUNTED_MAX; what is beyond is found by a search."""

    @cached_property
    def count(self) -> int:
        """How many rows there are pages for."""
        return int(self.object_list.order_by().values("pk")[:COUNTED_MAX].count())


class QueueList(ChangeList):
    """A page of a list."""

    def get_queryset(self, request: Any, exclude_parameters: Any = None) -> QuerySet:
        """Without what is only shown on a row's own page: a body may have megabytes."""
        return super().get_queryset(request, exclude_parameters).defer(*self.model_admin.left_out)

    def get_results(self, request: Any) -> None:
        """See ChangeList; without a search there is no "Show all", which would be another list."""
        super().get_results(request)
        if not self.query:
            self.full_result_count = self.result_count
