"""A synchronous standby takes over, again and again: what was acknowledged is there."""

from __future__ import annotations

import pytest

from tests.chaos.faults import FAILOVER
from tests.chaos.report import table
from tests.chaos.rig import run
from tests.chaos.scenario import Scenario


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_failover_to_a_synchronous_standby_loses_nothing() -> None:
    """PostgreSQL is lost for ever every few seconds, workers and doors die meanwhile; the account is even."""
    weights = {FAILOVER: 3, "worker killed": 2, "door killed": 1, "backends terminated": 1}
    done = run(
        Scenario(
            seconds=40.0, gap_s=(1.5, 3.0), weights=weights, lasts_s={FAILOVER: (0.0, 0.5)}, standby=True
        )
    )
    print(f"\n{table(done)}")
    assert done.faults[FAILOVER] >= 3
    assert done.account.facts["mails committed"] > 100
    assert done.account.green, table(done)
