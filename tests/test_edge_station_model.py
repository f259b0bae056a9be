"""A whole station with a quick look: estimates arrive in the headers, and a model sent by MQTT makes the next ones."""

# ruff: noqa: F401, F811  (fixtures)

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_edge_station import Server, Station, make_station, serve, simulated

from edge_agent.quick_look.package import SHIPPED, read_package, write_package
from edge_agent.quick_look.signing import make_key, sign
from fieldpost.v1 import command_pb2
from fieldpost.v1 import observation_pb2 as pb

pytest.importorskip("ai_edge_litert", reason="the quick look needs fieldpost[quick-look]")
pytestmark = pytest.mark.mosquitto


class LookingServer(Server):
    """Keeps the headers, too."""

    def _take_bundle(self, bundle: pb.Bundle) -> None:
        self.headers = [*getattr(self, "headers", []), *(o.header for o in bundle.observations)]
        super()._take_bundle(bundle)

    def models(self) -> list[str]:
        return [header.quick_look.model for header in self.headers if header.HasField("quick_look")]


def renamed_package() -> bytes:
    """The shipped model under another name: other bytes, the same answers."""
    shipped = read_package(SHIPPED.read_bytes())
    return write_package(replace(shipped.manifest, name="renamed"), shipped.model, shipped.samples)


def take_model(package: bytes, signature: bytes, command_id: str) -> command_pb2.Command:
    wanted = command_pb2.TakeModelCommand(package=package, signature=signature)
    return command_pb2.Command(command_id=command_id, take_model=wanted)


def test_a_model_sent_over_mqtt_is_tried_and_makes_the_next_estimates(
    mosquitto_port: int, make_station: Callable[..., Station], tmp_path: Path
) -> None:
    private, public = make_key()
    (tmp_path / "model-key.pem").write_bytes(public)
    server = LookingServer(mosquitto_port)
    try:
        station = make_station(
            simulated(5000, speed_up=15 * 10), quick_look="on", model_key_file=str(tmp_path / "model-key.pem")
        )
        station.start()
        server.wait_until(lambda: len(getattr(server, "headers", [])) > 5 and len(server.models()) > 3, 30)
        assert {name.partition("@")[0] for name in server.models()} == {"boundary-layer"}
        first = next(header for header in server.headers if header.HasField("quick_look"))
        assert first.quick_look.quality != pb.QUICK_LOOK_QUALITY_UNSPECIFIED
        assert first.quick_look.duration_ms > 0

        package = renamed_package()
        server.command(take_model(package, bytes(64), "forged"))
        server.wait_until(lambda: any(r.command_id == "forged" for r in server.results))
        (refused,) = (r for r in server.results if r.command_id == "forged")
        assert (refused.is_accepted, "expected a signature" in refused.detail) == (False, True)

        server.command(take_model(package, sign(package, private), "good"))
        server.wait_until(lambda: any(r.command_id == "good" for r in server.results), 30)
        (taken,) = (r for r in server.results if r.command_id == "good")
        assert taken.is_accepted, taken.detail
        server.wait_until(lambda: server.models()[-1].startswith("renamed@"), 30)
        server.wait_until(lambda: server.statuses[-1].quick_look_model.startswith("renamed@"), 30)
    finally:
        server.close()
