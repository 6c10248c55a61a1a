"""The account of a run: what was promised, compared with what the receiver and the tables say."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from email.parser import BytesHeaderParser
from pathlib import Path

import orjson

from tests.chaos.files import digest_of, file_of, received_digest
from tests.chaos.house import House
from tests.chaos.promises import Promises
from tests.chaos.sink import Copy, Received

MOST = "most in a window"
MOST_LATE = "most that the receiver's own clock was late"
NOT_COUNTED = ("transport_down", "abandoned")
"""Ends of attempts that never were ones: to wait, for a limit or a transport, uses up none."""

PAUSE_KNOWN_S = 2.0
"""A worker knows of a pause a second later; what had begun then may still come to the receiver."""

HANDLERS = ("async", "plain", "sql")


@dataclass
class Account:
    """
    What a run came to.

    Attributes:
        facts: How much went through, by name.
        findings: What must be nought, by name: examples of each. A run is green where all are empty.
    """

    facts: dict[str, int] = field(default_factory=dict)
    findings: dict[str, list[str]] = field(default_factory=dict)

    @property
    def green(self) -> bool:
        """Whether every promise was kept."""
        return not any(self.findings.values())

    @classmethod
    def of(cls, house: House, promises: Promises) -> Account:
        """Compare, once the house is drained."""
        account = cls()
        received = Received.read(house.sink.ledger)
        filed = _filed(house.maildir)
        account._count_mails(house, promises, received.copies + filed)
        account._count_events(house, promises)
        account._count_limits(house, received)
        account._count_conflicts(house)
        account._count_pauses(house, received)
        account.findings["answers that cannot be, or never came"] = list(promises.broken)
        account.findings["ended with an error when told to end"] = [
            f"{seat.name}: {code}" for seat in (*house.workers, *house.doors) for code in seat.ends if code
        ]
        account.facts |= dict(promises.counts)
        return account

    def _count_mails(self, house: House, promises: Promises, copies: Sequence[Copy]) -> None:
        with house.connected() as db:
            rows = db.execute(
                """
                SELECT id::text, subject, status, COALESCE(attempt_log, '[]')::text, dead_reason, attempts
                FROM email_queue
                """
            ).fetchall()
        by_token: dict[str, list[tuple[str, str]]] = defaultdict(list)
        uncertain: dict[str, int] = {}
        dead: Counter[str] = Counter()
        miscounted: list[str] = []
        for email_id, token, status, attempt_log, reason, attempts in rows:
            by_token[str(token)].append((str(email_id), str(status)))
            outcomes = Counter(entry["outcome"] for entry in orjson.loads(str(attempt_log)))
            uncertain[str(email_id)] = outcomes["crashed"] + outcomes["uncertain"]
            ended = outcomes.total() - sum(outcomes[outcome] for outcome in NOT_COUNTED)
            if attempts != ended:
                miscounted.append(f"{token}: {attempts} attempts, {dict(outcomes)}")
            if status == "dead_letter":
                dead[str(reason)] += 1
        delivered: dict[str, list[Copy]] = defaultdict(list)
        for copy in copies:
            delivered[copy.message_id.strip("<>").split("@")[0]].append(copy)

        lost: list[str] = []
        ends: Counter[str] = Counter()
        for token, email_id in promises.committed.items():
            status = dict(by_token.get(token, ())).get(email_id, "missing")
            if status in ("pending", "processing"):
                ends["queued"] += 1
            elif email_id in delivered:
                ends["delivered"] += 1
            elif status == "dead_letter":
                ends["dead letters that did not go out"] += 1
            else:
                lost.append(f"{token} is {status} and was not delivered")
        doubled = {email_id: made for email_id, made in delivered.items() if len(made) > 1}
        unexplained = [
            f"{made[0].token} went out {len(made)} times; open ends: {uncertain.get(email_id, 0)}"
            for email_id, made in doubled.items()
            if len(made) - 1 > uncertain.get(email_id, 0)
        ]
        parks = house.scenario.policy.get("email.on_uncertain") == "park"
        altered = [made[0].token for made in doubled.values() if len({one.digest for one in made}) > 1]
        seen = {copy.token for copy in copies} | set(by_token)
        known = promises.committed.keys() | promises.unknown
        self.facts |= {
            "mails committed": len(promises.committed),
            **{f"= {end}": ends[end] for end in ("delivered", "dead letters that did not go out", "queued")},
            **{f"dead letters, {reason}": count for reason, count in sorted(dead.items())},
            "mails with a file": len(promises.with_files),
            "mails of unknown commit": len(promises.unknown),
            "mails rolled back": len(promises.rolled_back),
            "doubled, each with an open end": len(doubled) - len(unexplained),
        }
        self.findings |= {
            "lost mails": lost,
            "doubled mails without an open end": unexplained,
            "doubled mails with other bytes": altered,
            "mails with other files than they were given": [
                copy.token
                for copy in copies
                if copy.file != digest_of(file_of(copy.token) if copy.token in promises.with_files else None)
            ],
            "doubled mails although such are parked": [
                f"{made[0].token} went out {len(made)} times" for made in doubled.values() if parks
            ],
            "rolled back and seen": sorted(promises.rolled_back & seen),
            "from nowhere": sorted(seen - known - promises.rolled_back),
            "attempts counted wrongly": miscounted,
            "queued twice with one key": [token for token, made in by_token.items() if len(made) > 1],
            "still queued after the drain": [f"{ends['queued']} mails"] if ends["queued"] else [],
        }

    def _count_events(self, house: House, promises: Promises) -> None:
        with house.connected() as db:
            rows = db.execute(
                """
                SELECT queued.webhook_event_id, queued.status, encode(sha256(request.body), 'hex')
                FROM webhook_retry_queue AS queued
                LEFT JOIN postroom.webhook_requests AS request ON request.id = queued.id
                """
            ).fetchall()
            effects = Counter(
                (str(row[0]), str(row[1]))
                for row in db.execute("SELECT handler, event_id FROM chaos.effects").fetchall()
            )
        stored = Counter(str(row[0]) for row in rows)
        done = {str(event_id) for event_id, status, _ in rows if status == "processed"}
        wanted = {(handler, event_id) for event_id in done for handler in HANDLERS}
        unfinished = sum(status != "processed" for _, status, _ in rows)
        self.facts |= {
            "events answered 200": len(promises.answered),
            "events stored": len(stored),
            "effects": sum(effects.values()),
        }
        self.findings |= {
            "lost events": sorted(promises.answered - stored.keys()),
            "events stored twice": [event_id for event_id, count in stored.items() if count > 1],
            "events stored with other bytes": [
                str(event_id) for event_id, _, digest in rows if promises.offered.get(str(event_id)) != digest
            ],
            "lost effects": [
                f"{handler} of {event_id}" for handler, event_id in sorted(wanted - effects.keys())
            ],
            "doubled effects": [
                f"{key[0]} of {key[1]}: {count}" for key, count in effects.items() if count > 1
            ],
            "events unfinished after the drain": [f"{unfinished} events"] if unfinished else [],
        }

    def _count_limits(self, house: House, received: Received) -> None:
        policy = house.scenario.policy
        times = sorted(at for at, _ in received.begun)
        by_recipient: dict[str, list[float]] = defaultdict(list)
        for at, to in sorted(received.begun):
            by_recipient[to].append(at)
        over: list[str] = []
        limits = [("all", policy["email.limit.global"], [times])]
        limits.append(("one address", policy["email.limit.recipient"], list(by_recipient.values())))
        for of_whom, rule, lists in limits:
            if rule == "off":
                continue
            amount, _, span = rule.partition("/")
            window_s = float(span.removesuffix("s"))
            most = max((most_in_a_window(one, window_s) for one in lists), default=0)
            self.facts[f"{MOST} of {span}, {of_whom} (limit {amount})"] = most
            if most > int(amount):
                over.append(f"{most} in {span} for {of_whom}, the limit is {amount}")
        self.facts["mail transactions at the receiver"] = len(times)
        self.facts[f"{MOST_LATE}, ms"] = round(1000 * max(received.late_s, default=0.0))
        self.findings["over the limit"] = over

    def _count_conflicts(self, house: House) -> None:
        with house.connected() as db:
            overwritten = db.execute("SELECT queue, id, what FROM chaos.overwritten").fetchall()
        self.findings["outcomes overwritten by an old lease"] = [
            f"{row[2]} ({row[0]} {row[1]})" for row in overwritten
        ]
        server_log = "".join((one.folder / "log").read_text(errors="replace") for one in house.servers)
        self.findings["deadlocks"] = ["deadlock detected"] * server_log.count("deadlock detected")
        logged: Counter[str] = Counter()
        for line in house.logs():
            if line.startswith("{") and line.endswith("}"):
                logged[orjson.loads(line)["event"]] += 1
        self.facts["outcomes of old leases that changed nothing"] = (
            logged["email.late"] + logged["webhook.late"]
        )
        self.findings["errors of our own in the logs"] = [
            f"{event}: {logged[event]}"
            for event in ("claim.failed", "http.failed", "tend.failed")
            if logged[event]
        ]

    def _count_pauses(self, house: House, received: Received) -> None:
        with house.connected() as db:
            leased = db.execute("SELECT queue, id FROM chaos.leased_in_a_pause").fetchall()
        self.findings["leased though its queue was paused"] = [f"{row[0]} {row[1]}" for row in leased]
        self.findings["begun though its transport was paused"] = [
            f"to {to}, {at - since:.1f} s after the pause"
            for kind, since, until in house.pauses
            for at, to in received.begun
            if kind == "transport" and since + PAUSE_KNOWN_S < at < until
        ]


def most_in_a_window(times: Sequence[float], window_s: float) -> int:
    """The most of some moments, in their order, that any span of that length holds."""
    return max((bisect_left(times, start + window_s) - place for place, start in enumerate(times)), default=0)


def _filed(maildir: Path) -> list[Copy]:
    """What lies in the maildir: a mail that was filed twice is there once."""
    return [_read_file(path) for name in ("new", "cur") for path in _files(maildir / name)]


def _files(folder: Path) -> Iterable[Path]:
    return folder.iterdir() if folder.is_dir() else ()


def _read_file(path: Path) -> Copy:
    """A filed mail: what SMTP carries, but for two fields on top and the ends of lines."""
    content = path.read_bytes().split(b"\n", 2)[2].replace(b"\n", b"\r\n")
    message = BytesHeaderParser().parsebytes(content)
    token, message_id, to = (str(message[name]) for name in ("Subject", "Message-ID", "To"))
    at = path.stat().st_mtime
    return Copy(
        token, message_id, hashlib.sha256(content).hexdigest(), at, at, True, to, received_digest(content)
    )
