"""
The names of all events that postroom logs: they are an interface, since people search and alert by them.

docs/log-events.md shows the same list, and a test compares both with what the code logs.
"""

from __future__ import annotations

EVENTS = {
    "claim.failed": "A claim ended in an error that is not the loss of the database; it is tried again.",
    "database.away": "The database gave no answer in time; the worker waits and asks again.",
    "email.dead_letter": "An e-mail needs a person: it failed for good, or too often, or as the policy says.",
    "email.late": "An outcome came after its lease had passed on, and changed nothing.",
    "email.lease_lost": "An attempt did not begin: its lease had passed on.",
    "email.put_back": "An attempt failed for now; the e-mail goes out again at next_retry_at.",
    "email.sent": "An e-mail is out; reply is what the other side said.",
    "email.waits": "An e-mail waits for a slot of a limit; no attempt was counted.",
    "embedded.not_restarted": "The embedded database was lost and does not start; it is tried again.",
    "embedded.restarted": "The embedded database had lost its watch, and both were started again.",
    "house.ending": "A signal told the process to end: it claims no more, and settles what it has begun.",
    "house.opened": "A process begins; database is where e-mails are kept, transports are where they go.",
    "http.failed": "A request met a mistake of ours and got a 500; error is its kind and its place.",
    "http.request": "A request was answered; id is the e-mail or the event that it was about.",
    "jwks.not_fetched": "The keys of POSTROOM_JWKS_URL could not be had; those that are known stay good.",
    "lease.not_extended": "The leases of long attempts were not extended in time.",
    "library.said": "A library warned of something; logger says which.",
    "listener.lost": "The connection that hears of new work was lost; the worker polls until it is back.",
    "migration.step": "A step of bringing the database up to date, or what it found.",
    "settings.unknown": "A variable POSTROOM_… is no setting; meant is the one that may have been meant.",
    "settle.repeated": "The outcomes of a batch were not recorded and are sent again.",
    "start.failed": "The starts of a batch were not recorded; its e-mails go back, no attempt counted.",
    "tend.failed": "A worker could not show that it lives, or extend its leases.",
    "transport.not_published": "A transport's pause was not written down for status and explain.",
    "transport.paused": "A transport is down and rests for pause_s; its e-mails wait, no attempt counted.",
    "transport.resumed": "A transport that had paused takes e-mail again.",
    "webhook.dead_letter": "An event needs a person: a handler refused it for good, or it failed too often.",
    "webhook.handled_elsewhere": "A source's handlers are in a program; this worker leaves its events alone.",
    "webhook.late": "An outcome came after its lease had passed on; what had no mark yet was undone.",
    "webhook.lease_lost": "An attempt did not begin: its lease had passed on.",
    "webhook.left_alone": "Nothing here knows this source; a worker leaves its events alone.",
    "webhook.not_stored": "The database refused an event; the provider got a 503 and sends it again.",
    "webhook.processed": "An event's handlers are done; reply names them.",
    "webhook.put_back": "A handler failed for now; those that failed run again at next_retry_at.",
    "webhook.refused": "A request's signature did not hold; found is why, advice is what to do.",
    "webhook.unhandled": "No handler wants this event; it is kept, and can be replayed.",
    "worker.started": "A worker of a queue began.",
    "worker.stopped": "A worker of a queue has drained and ended.",
}
