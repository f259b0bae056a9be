"""A short campaign of kill -9 against agents, broker and server; `make chaos` runs the long one."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos.campaign import run_campaign
from conftest import MOSQUITTO, skip_or_fail


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["mosquitto", "amqtt"])
def test_random_kills_lose_nothing_and_store_nothing_twice(tmp_path: Path, broker: str) -> None:
    if broker == "mosquitto" and MOSQUITTO is None:
        skip_or_fail("mosquitto is not installed (make mosquitto)")
    outcome = run_campaign(broker, seconds=15, seed=3, folder=tmp_path)
    assert sum(outcome.kills.values()) >= 3
    assert outcome.is_clean, outcome
