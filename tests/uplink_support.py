"""An uplink at work, and a way to wait for what it says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_agent.link.identity import Identity
from edge_agent.link.mqtt_connection import ConnectionSettings, LastWill
from edge_agent.link.uplink import LinkDown, LinkEvent, LinkUp, MqttUplink
from fieldpost.broker_url import parse_broker_url

UP, DOWN = "fieldpost/v1/up/station-a", "fieldpost/v1/down/station-a"


class Link:
    """An uplink at work, and what it said."""

    def __init__(
        self,
        urls: list[str],
        *,
        ca_file: Path | None = None,
        identity: Identity | None = None,
        stayed_s: float = 0.0,
        backoff: Callable[[int, float], float] = lambda *_: 0.05,
        **settings: Any,
    ) -> None:
        topics = [f"{DOWN}/receipts"]
        how = ConnectionSettings("station-a", topics, LastWill(f"{UP}/status", b"gone"), **settings)
        brokers = [parse_broker_url(url) for url in urls]
        self.uplink = MqttUplink(
            brokers,
            how,
            ca_file=ca_file,
            identity=identity,
            look_interval_s=0.05,
            stayed_s=stayed_s,
            backoff=backoff,
        )
        self.events: list[LinkEvent] = []

    def __enter__(self) -> Link:
        self.uplink.start(self.events.append)
        return self

    def __exit__(self, *_: object) -> None:
        self.uplink.stop()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"{self.events}, alarm {self.uplink.alarm!r}"
            time.sleep(0.005)

    def wait_for_up(self, url: str = "", count: int = 1) -> None:
        self.wait_for(lambda: sum(isinstance(e, LinkUp) and url in e.broker_url for e in self.events) >= count)

    def wait_for_down(self, words: str = "", timeout_s: float = 10.0) -> str:
        self.wait_for(lambda: any(words in reason for reason in self.reasons()), timeout_s)
        return self.reasons()[-1]

    def reasons(self) -> list[str]:
        return [e.reason for e in self.events if isinstance(e, LinkDown)]
