"""The short form of `make chaos`: every promise holds while things break, for seconds instead of minutes."""

from __future__ import annotations

import os

import pytest

from tests.chaos.report import table
from tests.chaos.rig import run
from tests.chaos.scenario import Scenario

SEED = int(os.environ.get("POSTROOM_TEST_SEED", "1"))


@pytest.mark.timeout(300)
def test_nothing_is_lost_doubled_or_over_a_limit_while_everything_breaks() -> None:
    """Kills, stops, resets, a broken network, a bad receiver: ten seconds of it, then the account is even."""
    done = run(Scenario(seed=SEED, seconds=10.0, workers=3, mails_per_s=25.0, events_per_s=8.0))
    print(f"\n{table(done)}")
    assert sum(done.faults.values()) >= 10
    assert done.account.facts["mails committed"] > 50
    assert done.account.facts["events answered 200"] > 20
    assert done.account.green, table(done)
