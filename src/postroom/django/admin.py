"""
The queues in Django's admin pages: dead letters first, each list bounded, and what a person may decide.

A page costs the same with ten rows and with ten million: each list goes by an index, is counted up to
COUNTED_MAX, and a search looks through the newest SEARCHED_MAX rows of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import Any, ClassVar
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.db.models.expressions import RawSQL

from postroom.database.audit import NOTE_CHARACTERS_MAX, Actor
from postroom.django.decide import decide
from postroom.django.models import QueuedEmail, WebhookEvent
from postroom.queue.dead_letters import What
from postroom.queue.parts import REASONS
from postroom.queue.table import QueueTable
from postroom.queues import EMAILS, WEBHOOKS
from postroom.wording import count_of

COUNTED_MAX = 10_000
SEARCHED_MAX = 20_000
DECIDED_MAX = 10_000
"""Rows that one action acts on; for more there is `postroom dead-letters retry --all`."""
REFUSED_MAX = 10
"""Rows that are named one by one, of those that refuse."""

# As the index of claims has it.
_DUE = RawSQL("COALESCE(due_at, next_retry_at, '-infinity'::timestamptz)", [])


@dataclass(frozen=True)
class State:
    """A list: which rows, in which order."""

    name: str
    title: str
    statuses: tuple[str, ...]
    order: tuple[Any, ...]

    def of(self, rows: QuerySet) -> QuerySet:
        """The list."""
        wanted = Q(status__in=self.statuses) if len(self.statuses) > 1 else Q(status=self.statuses[0])
        return rows.filter(wanted).order_by(*self.order)


def states(done: str) -> list[State]:
    """The lists of a queue; the first one is shown where none is asked for."""
    return [
        State("dead", "Dead letters", ("dead_letter",), ("-failed_at",)),
        State("waiting", "Waiting", ("pending", "processing"), ("-priority", _DUE)),
        State("done", done.capitalize(), (done,), (f"-{done}_at",)),
        State("discarded", "Discarded", ("failed",), ("-failed_at",)),
    ]


class StateFilter(admin.SimpleListFilter):
    """One list at a time: there is none of all rows, which no index has in order."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002
        """See Django's SimpleListFilter."""
        self.states = {state.name: state for state in states(model_admin.queue.done)}
        return [(state.name, state.title) for state in self.states.values()]

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
        return self.states.get(self.value() or "dead") or self.states["dead"]

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


class DecideForm(ActionForm):
    """What a person says to it, for the audit trail."""

    note = forms.CharField(required=False, max_length=NOTE_CHARACTERS_MAX, label="Note:")


class QueueAdmin(admin.ModelAdmin):
    """A queue: to look at, and to decide on its dead letters."""

    queue: ClassVar[QueueTable]
    action_form = DecideForm
    actions = ("retry", "discard")
    list_filter = (StateFilter, ReasonFilter)
    list_per_page = 50
    list_max_show_all = 50
    paginator = BoundedPaginator
    show_full_result_count = False
    sortable_by = ()

    def has_add_permission(self, request: Any) -> bool:  # noqa: ARG002
        """A mail is queued by Django's mail functions, an event comes by the door."""
        return False

    def has_change_permission(self, request: Any, obj: Any = None) -> bool:  # noqa: ARG002
        """Nobody changes a row by hand."""
        return False

    def has_delete_permission(self, request: Any, obj: Any = None) -> bool:  # noqa: ARG002
        """What is old goes by itself: `postroom settings list`, retention.*"""
        return False

    def has_decide_permission(self, request: Any) -> bool:
        """Who may retry and discard."""
        return bool(request.user.has_perm(f"postroom.decide_{self.model._meta.model_name}"))

    @admin.action(description="Retry: all attempts again", permissions=["decide"])
    def retry(self, request: Any, queryset: QuerySet) -> None:
        """See postroom dead-letters retry."""
        self._decide(request, queryset, "retry", "due again")

    @admin.action(description="Discard: give them up for good", permissions=["decide"])
    def discard(self, request: Any, queryset: QuerySet) -> None:
        """See postroom dead-letters discard."""
        self._decide(request, queryset, "discard", "discarded")

    def get_search_results(self, request: Any, queryset: QuerySet, search_term: str) -> tuple[QuerySet, bool]:
        """An id is found in whatever list; a text in the newest rows of this one."""
        term = search_term.strip().replace("\0", "")
        if not term:
            return queryset, False
        with suppress(ValueError):
            return self.model.objects.filter(pk=UUID(term)).order_by("pk"), False
        state = {each.name: each for each in states(self.queue.done)}.get(request.GET.get("state", "dead"))
        newest = queryset.order_by(*state.order if state else ("-failed_at",)).values("pk")[:SEARCHED_MAX]
        found = reduce(or_, (Q(**{f"{name}__icontains": term}) for name in self.search_fields))
        return queryset.filter(pk__in=newest).filter(found), False

    def _decide(self, request: Any, queryset: QuerySet, what: What, became: str) -> None:
        ids = list(queryset.order_by().values_list("pk", flat=True)[:DECIDED_MAX])
        by = Actor(f"{request.user.get_username()} (Django)", "operator")
        decided = decide(self.queue, what, ids, by, request.POST.get("note", ""))
        others = len(ids) - decided.done - len(decided.refused)
        if decided.done or not decided.stopped:
            said = f"{count_of(decided.done, self.queue.noun)} {became}."
            self.message_user(request, said, messages.SUCCESS if decided.done else messages.WARNING)
        if decided.stopped:
            left = f"{count_of(others, self.queue.noun)} may be as before: look at the list, and repeat it."
            self.message_user(request, f"{decided.stopped}. {left}", messages.ERROR)
        elif others:
            self.message_user(request, f"{others:,} are no dead letters (any more).", messages.WARNING)
        for line in decided.refused[:REFUSED_MAX]:
            self.message_user(request, f"Refuses its update: {line}", messages.ERROR)
        if (further := len(decided.refused) - REFUSED_MAX) > 0:
            self.message_user(request, f"{further:,} more refuse theirs.", messages.ERROR)


@admin.register(QueuedEmail)
class QueuedEmailAdmin(QueueAdmin):
    """E-mails."""

    queue = EMAILS
    list_display = ("to_email", "subject", "status", "attempts", "last_error", "created_at", "failed_at")
    search_fields = ("to_email", "subject", "email_type", "last_error")
    search_help_text = f"An id, or a text in the newest {SEARCHED_MAX:,} of this list"


@admin.register(WebhookEvent)
class WebhookEventAdmin(QueueAdmin):
    """Webhook events."""

    queue = WEBHOOKS
    list_display = (
        "webhook_type", "event_type", "webhook_event_id", "status", "attempts", "last_error", "created_at",
    )  # fmt: skip
    search_fields = ("webhook_type", "event_type", "webhook_event_id", "last_error")
    search_help_text = f"An id, or a text in the newest {SEARCHED_MAX:,} of this list"
