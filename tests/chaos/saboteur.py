"""
postroom with one of its guards in Python taken out: `python -m tests.chaos.saboteur GUARD worker --app …`.

The product has no hooks for this: what is replaced is replaced here, before its own main() runs.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from postroom.cli.main import main
from postroom.database.connection import Connection
from postroom.email.transports.failover import Failover
from postroom.queue.claim import Claim
from postroom.queue.pauses import Pauses
from postroom.webhooks.event import IncomingEvent
from postroom.webhooks.intake import Intake
from postroom.webhooks.store import ClaimedEvent, WebhookStore

COMMIT_S = 0.05
"""What is between the two commits of a handler that has two transactions: so a short run meets it."""

_background: set[asyncio.Task[bool]] = set()


def use_slots_of_any_age() -> None:
    """A slot of a limit is good for ever, and not for 250 ms."""
    _replace(Claim, "begun_now", property(lambda claim: claim.started))


def answer_before_the_commit() -> None:
    """The door says 200 and stores the event when it comes to it."""
    keep = Intake.keep

    async def answer(intake: Intake, event: IncomingEvent) -> bool:
        task = asyncio.create_task(keep(intake, event))
        _background.add(task)
        task.add_done_callback(_background.discard)
        return True

    _replace(Intake, "keep", answer)


def mark_in_another_transaction() -> None:
    """A handler's mark is committed by itself, before its effect is."""
    finish_handler = WebhookStore.finish_handler

    async def finish(
        store: WebhookStore,
        worker: object,
        claim: Claim[ClaimedEvent],
        handler: str,
        *,
        stopped: bool = False,
        within: Connection | None = None,
    ) -> None:
        assert within is not None
        await finish_handler(store, claim.item.worker, claim, handler, stopped=stopped)
        await asyncio.sleep(COMMIT_S)

    _replace(WebhookStore, "finish_handler", finish)


def know_of_no_pause() -> None:
    """No process looks at what persons have paused."""
    _replace(Pauses, "of", lambda _pauses, _kind, _name: None)
    _replace(Pauses, "left_s", lambda _pauses, _kind, _name: 0.0)


def ask_once_for_a_paused_transport() -> None:
    """What waits for a connection begins when its turn comes, whatever was paused meanwhile."""
    _replace(Failover, "_unless_paused", lambda _failover, _transport, start: start)


def _replace(owner: type, name: str, by: object) -> None:
    assert hasattr(owner, name), f"{owner.__name__} has no {name}: mend the sabotage"
    setattr(owner, name, by)


GUARDS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        use_slots_of_any_age,
        answer_before_the_commit,
        mark_in_another_transaction,
        know_of_no_pause,
        ask_once_for_a_paused_transport,
    )
}

if __name__ == "__main__":
    GUARDS[sys.argv.pop(1)]()
    main()
