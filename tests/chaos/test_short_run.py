"""The short form of `make chaos`: every promise holds while things break, for seconds instead of minutes."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests.chaos.report import table
from tests.chaos.rig import run
from tests.chaos.scenario import Scenario

SEED = int(os.environ.get("POSTROOM_TEST_SEED", "1"))
SHORT = Scenario(seed=SEED, seconds=8.0, workers=3, mails_per_s=25.0, events_per_s=8.0)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(SHORT, id="repeated"),
        pytest.param(replace(SHORT, seed=SEED + 1).with_policy(email__on_uncertain="park"), id="parked"),
    ],
)
def test_nothing_is_lost_doubled_or_over_a_limit_while_everything_breaks(scenario: Scenario) -> None:
    """
    Kills, stops, resets, a broken network, a bad receiver, for eight seconds; then the account is even.

    What may have gone out is sent again, or parked: then no mail goes out twice whatever happens.
    """
    done = run(scenario)
    print(f"\n{table(done)}")
    assert sum(done.faults.values()) >= 8
    assert done.account.facts["mails committed"] > 30
    assert done.account.facts["events answered 200"] > 10
    assert done.account.green, table(done)
