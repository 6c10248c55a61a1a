"""
The queues in Django's admin pages: dead letters first, each list bounded, and what a person may decide.

A page costs the same with ten rows and with ten million: each list goes by an index (lists.py), and a search
looks through the newest SEARCHED_MAX rows of it.
"""

from __future__ import annotations

import json
from functools import reduce
from operator import or_
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.db.models import Q, QuerySet
from django.utils.html import format_html
from django.utils.text import Truncator

from postroom.database.audit import NOTE_CHARACTERS_MAX, Actor
from postroom.django.decide import decide
from postroom.django.lists import (
    OF_ANY_STATE,
    BoundedPaginator,
    QueueList,
    ReasonFilter,
    StateFilter,
    id_of,
    state_of,
)
from postroom.django.models import QueuedEmail, WebhookEvent
from postroom.queue.dead_letters import What
from postroom.queue.table import QueueTable
from postroom.queues import EMAILS, WEBHOOKS
from postroom.wording import count_of

SEARCHED_MAX = 20_000
DECIDED_MAX = 10_000
"""Rows that one action acts on; for more there is `postroom dead-letters retry --all`."""
REFUSED_MAX = 10
"""Rows that are named one by one, of those that refuse."""
CELL_CHARACTERS_MAX = 100
BODY_CHARACTERS_MAX = 50_000
"""Of a body, or of what a provider sent, the page of a row shows no more."""

_WHERE_IT_IS = (
    "status",
    "dead_reason",
    "last_error",
    "attempts_of",
    "waits_for",
    "due",
    "priority",
    "created_at",
    "updated_at",
    "failed_at",
)


class DecideForm(ActionForm):
    """What a person says to it, for the audit trail."""

    note = forms.CharField(required=False, max_length=NOTE_CHARACTERS_MAX, label="Note:")


class QueueAdmin(admin.ModelAdmin):
    """A queue: to look at, and to decide on its dead letters."""

    queue: ClassVar[QueueTable]
    about: ClassVar[tuple[str, ...]]
    left_out: ClassVar[tuple[str, ...]]
    action_form = DecideForm
    actions = ("retry", "discard")
    list_filter = (StateFilter, ReasonFilter)
    list_per_page = 50
    list_max_show_all = 50
    paginator = BoundedPaginator
    show_facets = admin.ShowFacets.NEVER  # it counts every row of every state
    show_full_result_count = False
    sortable_by = ()

    class Media:
        css: ClassVar = {"all": ("postroom/admin.css",)}

    def get_changelist(self, request: Any, **_: object) -> type[QueueList]:  # noqa: ARG002
        """See Django's ModelAdmin."""
        return QueueList

    def get_list_display(self, request: Any) -> tuple[str, ...]:
        """What a row is about, and what matters of it in this state."""
        if id_of(request.GET.get("q", "")):
            return (*self.about, *OF_ANY_STATE)
        return (*self.about, *state_of(request.GET, self.queue.done).columns)

    @admin.display(description="last error", empty_value="")
    def error(self, row: Any) -> str:
        """So much of it that a table stays one."""
        return _cell(row.last_error)

    @admin.display(description="due")
    def due(self, row: Any) -> Any:
        """When it is due, or its lease ends; of an old caller's row that stands in next_retry_at."""
        waits = row.status in ("pending", "processing")
        return (row.due_at or row.next_retry_at or row.created_at or "-") if waits else "-"

    @admin.display(description="attempts")
    def attempts_of(self, row: Any) -> str:
        """With how many there may be."""
        return f"{row.attempts} of {row.max_attempts}, {row.error_count} failed in all"

    @admin.display(description="headers")
    def headers_shown(self, row: Any) -> str:
        """See _json."""
        return _json(row.headers)

    @admin.display(description="metadata")
    def metadata_shown(self, row: Any) -> str:
        """See _json."""
        return _json(row.metadata)

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

    @admin.action(description="Discard: they are not tried again", permissions=["decide"])
    def discard(self, request: Any, queryset: QuerySet) -> None:
        """See postroom dead-letters discard."""
        self._decide(request, queryset, "discard", "discarded")

    def get_search_results(self, request: Any, queryset: QuerySet, search_term: str) -> tuple[QuerySet, bool]:
        """An id is found in whatever list; a text in the newest rows of this one."""
        term = search_term.strip().replace("\0", "")
        if not term:
            return queryset, False
        if wanted := id_of(term):
            return self.model.objects.filter(pk=wanted).order_by("pk"), False
        order = state_of(request.GET, self.queue.done).order
        newest = queryset.order_by(*order).values("pk")[:SEARCHED_MAX]
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
    about = ("to_email", "subject_start")
    left_out = ("html", "text", "headers", "metadata")
    search_fields = ("to_email", "subject", "email_type", "last_error")
    search_help_text = f"An id, or a text in the newest {SEARCHED_MAX:,} of this list"
    fieldsets = (
        (None, {"fields": ("to_email", "subject", "from_email", "reply_to", "email_type")}),
        ("Where it is", {"fields": (*_WHERE_IT_IS, "sent_at", "id")}),
        (
            "What it says",
            {"fields": ("text_shown", "html_shown", "headers_shown", "metadata_shown", "idempotency_key")},
        ),
    )

    @admin.display(description="subject")
    def subject_start(self, row: Any) -> str:
        """So much of it that a table stays one."""
        return _cell(row.subject)

    @admin.display(description="text")
    def text_shown(self, row: Any) -> str:
        """See _preformatted."""
        return _preformatted(row.text)

    @admin.display(description="html")
    def html_shown(self, row: Any) -> str:
        """Its source: what a stranger may have written is not run in this page."""
        return _preformatted(row.html)


@admin.register(WebhookEvent)
class WebhookEventAdmin(QueueAdmin):
    """Webhook events."""

    queue = WEBHOOKS
    about = ("webhook_type", "event_type", "webhook_event_id")
    left_out = ("payload", "headers", "metadata")
    search_fields = ("webhook_type", "event_type", "webhook_event_id", "last_error")
    search_help_text = f"An id, or a text in the newest {SEARCHED_MAX:,} of this list"
    fieldsets = (
        (None, {"fields": ("webhook_type", "event_type", "webhook_event_id")}),
        ("Where it is", {"fields": (*_WHERE_IT_IS, "processed_at", "id")}),
        ("What it says", {"fields": ("payload_shown", "headers_shown", "metadata_shown")}),
    )

    @admin.display(description="payload")
    def payload_shown(self, row: Any) -> str:
        """See _json."""
        return _json(row.payload)


def _cell(text: str | None) -> str:
    return str(Truncator(text or "").chars(CELL_CHARACTERS_MAX))


def _json(value: Any) -> str:
    if value in (None, {}):
        return "-"
    try:
        return _preformatted(
            value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
        )
    except RecursionError:
        return "(nested too deeply to be shown here)"


def _preformatted(text: str | None) -> str:
    """With its lines, up to BODY_CHARACTERS_MAX."""
    if not text:
        return "-"
    further = len(text) - BODY_CHARACTERS_MAX
    shown = text[:BODY_CHARACTERS_MAX] + (f"\n… and {further:,} more characters" if further > 0 else "")
    return str(format_html('<pre class="postroom-text">{}</pre>', shown))
