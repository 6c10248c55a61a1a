"""What one run is: how long, which faults how often, how much traffic, which policy."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

LEASE_S = 2.0

POLICY = MappingProxyType(
    {
        "lease": "2s",
        "email.limit.global": "200/5s",
        "email.limit.recipient": "12/5s",
        "email.backoff": "200ms,500ms,1s,2s,4s",
        "webhook.backoff": "200ms,500ms,1s,2s,4s",
    }
)

WEIGHTS = MappingProxyType(
    {
        "worker killed": 8,
        "worker stopped for longer than its lease": 5,
        "worker told to end": 3,
        "door killed": 3,
        "door told to end": 1,
        "backends terminated": 4,
        "PostgreSQL stopped fast": 1,
        "PostgreSQL stopped at once": 1,
        "PostgreSQL killed": 1,
        "network silent for a while": 1,
        "network half open": 2,
        "network half open after the server has answered": 2,
        "reset after COMMIT was sent": 3,
        "reset before COMMIT was sent": 1,
        "reset after any statement was sent": 2,
        "network slow": 2,
        "network trickles": 2,
        "slots of limits known late": 2,
        "disk full for PostgreSQL": 1,
        "disk full for the maildir": 2,
        "receiver refuses connections": 2,
        "receiver drops after the final dot": 3,
        "receiver answers 421": 1,
        "receiver answers 451": 2,
        "receiver answers 550 to some": 2,
        "receiver is slow": 2,
        "queue paused by a person": 2,
    }
)
"""Every fault of faults.py but two, and how often it comes compared with the others."""

LASTS_S = MappingProxyType(
    {
        "worker stopped for longer than its lease": (1.3 * LEASE_S, 3 * LEASE_S),
        "network silent for a while": (0.5, 4.0),
        "network half open": (1.0, 4.0),
        "PostgreSQL stopped fast": (0.3, 2.0),
        "PostgreSQL stopped at once": (0.3, 2.0),
        "PostgreSQL killed": (0.0, 1.0),
        "disk full for PostgreSQL": (1.0, 3.0),
        "queue paused by a person": (1.5, 4.0),
        "transport paused by a person": (3.0, 4.0),
    }
)
OTHERS_LAST_S = (0.5, 3.0)


@dataclass(frozen=True)
class Moment:
    """One fault of the schedule, in seconds from the run's begin; `draw` decides whom it meets."""

    at_s: float
    kind: str
    lasts_s: float
    draw: int


@dataclass(frozen=True)
class Scenario:
    """
    One run.

    Attributes:
        seed: The same seed makes the same schedule; what the machine does in between is its own.
        seconds: How long traffic and faults go on; healing and draining come on top.
        gap_s: Between two faults.
        weights: Which faults, how often.
        lasts_s: How long some of them last, where that is not LASTS_S.
        receiver: How the receiver behaves where no fault says otherwise: one of sink.MODES.
        mails_per_s, events_per_s: The traffic.
        burst: A transaction of a plain INSERT has so many mails at most.
        hot_recipients, hot_share: So many get this share of the mails; the limit of one address is theirs.
        drain_s_max: After so long what still waits is a finding.
        environment: Further variables of workers and doors.
        worker_command, door_command: What is started in place of `python -m postroom`.
        clocks_off: Whether one worker's clock is an hour ahead and one's an hour behind.
        standby: Whether PostgreSQL has a synchronous standby.
        maildir: Whether one worker files into a maildir.
        edits: Of functions in the database of the run: name, old text, new text.
        statements: What else is run in the database beforehand.
        keep: Where the logs and the receiver's ledger are copied to.
    """

    seed: int = 1
    seconds: float = 480.0
    gap_s: tuple[float, float] = (0.3, 1.2)
    weights: Mapping[str, int] = field(default_factory=lambda: WEIGHTS)
    lasts_s: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    receiver: str = "normal"
    workers: int = 4
    doors: int = 2
    mails_per_s: float = 40.0
    events_per_s: float = 12.0
    burst: int = 5
    policy: Mapping[str, str] = field(default_factory=lambda: POLICY)
    hot_recipients: int = 6
    hot_share: float = 0.2
    drain_s_max: float = 180.0
    environment: Mapping[str, str] = field(default_factory=dict)
    clocks_off: bool = True
    maildir: bool = True
    standby: bool = False
    worker_command: tuple[str, ...] = ()
    door_command: tuple[str, ...] = ()
    edits: tuple[tuple[str, str, str], ...] = ()
    statements: tuple[str, ...] = ()
    keep: Path | None = None

    def with_policy(self, **changes: str) -> Scenario:
        """The same with other settings; `__` stands for the dot of their names."""
        return replace(self, policy={**self.policy, **{k.replace("__", "."): v for k, v in changes.items()}})

    def schedule(self) -> Iterator[Moment]:
        """
        The faults, in their order. The first round has each kind once, where there is time for it.
        """
        rng = random.Random(self.seed)
        lasts_s = {**LASTS_S, **self.lasts_s}
        kinds = [kind for kind, weight in self.weights.items() if weight]
        first = rng.sample(kinds, len(kinds)) if self.seconds > 2 * len(kinds) else []
        at_s = rng.uniform(*self.gap_s) + 0.5
        while at_s < self.seconds:
            kind = first.pop() if first else rng.choices(kinds, [self.weights[one] for one in kinds])[0]
            yield Moment(at_s, kind, rng.uniform(*lasts_s.get(kind, OTHERS_LAST_S)), rng.randrange(2**31))
            at_s += rng.uniform(*self.gap_s)
