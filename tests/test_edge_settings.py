"""The station's settings: one TOML file, the environment over it, and an error that helps for everything else."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edge_agent.settings import AgentSettings, describe_settings, load_settings, parse_settings
from edge_agent.source_settings import FolderSettings, ReplaySettings, SimulatedSettings
from fieldpost.errors import InvalidRequestError

TOML = """
station = "magurele"
broker_urls = ["mqtt://127.0.0.1:1883", "mqtts://broker.example:8884"]
buffer_folder = "/var/lib/fieldpost/buffer"

[[instruments]]
name = "cl51"
source = "simulated"
start_time = 2025-06-01T00:00:00Z
speed_up = 60
count = 10

[[instruments]]
name = "cl61"
source = "folder"
folder = "/srv/cl61"
after = "move"

[[instruments]]
name = "chm15k"
source = "replay"
payload_format = "netcdf"
path = "/srv/recorded"
"""


def table(**changes: Any) -> dict[str, Any]:
    return {"station": "magurele", "broker_urls": ["mqtt://a"], "buffer_folder": "/b", **changes}


def simulated(**changes: Any) -> dict[str, Any]:
    return table(instruments=[{"name": "cl51", "source": "simulated", **changes}])


def test_a_settings_file_is_read_into_frozen_values(tmp_path: Path) -> None:
    path = tmp_path / "station.toml"
    path.write_text(TOML)
    settings = load_settings(path, {})
    assert settings.broker_urls == ("mqtt://127.0.0.1:1883", "mqtts://broker.example:8884")
    assert settings.buffer_folder == Path("/var/lib/fieldpost/buffer")
    assert settings.instruments == (
        SimulatedSettings(
            name="cl51", source="simulated", start_time=datetime(2025, 6, 1, tzinfo=UTC), speed_up=60.0, count=10
        ),
        FolderSettings(name="cl61", source="folder", folder=Path("/srv/cl61"), after="move"),
        ReplaySettings(name="chm15k", source="replay", payload_format="netcdf", path=Path("/srv/recorded")),
    )


def test_the_environment_goes_over_the_file() -> None:
    environment = {
        "FIELDPOST_AGENT_KEEPALIVE_S": "7",
        "FIELDPOST_AGENT_BROKER_URLS": "mqtt://a,mqtt://b:1884",
        "FIELDPOST_AGENT_RESEND_AFTER_S": "0.5",
        "FIELDPOST_AGENT_LOG_LEVEL": "DEBUG",
        "HOME": "/root",
    }
    settings = parse_settings(table(keepalive_s=60), environment)
    assert (settings.keepalive_s, settings.resend_after_s, settings.log_level) == (7, 0.5, "DEBUG")
    assert settings.broker_urls == ("mqtt://a", "mqtt://b:1884")


@pytest.mark.parametrize(
    ("broken", "message", "hint"),
    [
        (table(staton="x"), "expected a known setting, but got staton", "did you mean station?"),
        (simulated(sed=1), "expected a known setting, but got instruments.sed", "did you mean instruments.seed?"),
        ({"station": "a"}, "expected a setting broker_urls, but there is none", ""),
        (table(station="Măgurele"), "expected a station name of 1 to 63 characters", "rename the station"),
        (table(keepalive_s=0), "expected keepalive_s to be at least 1, but got 0", ""),
        (table(keepalive_s="30"), "expected keepalive_s to be a whole number, but got '30'", ""),
        (table(keepalive_s=True), "expected keepalive_s to be a whole number, but got True", ""),
        (table(broker_urls=[]), "expected broker_urls to be a list of text", ""),
        (table(broker_urls=["http://a"]), "expected a broker URL mqtt://host:port", ""),
        (table(broker_urls=["mqtt://a:port"]), "expected a broker URL mqtt://host:port", ""),
        (table(log_level="LOUD"), "expected log_level to be a DEBUG or INFO", ""),
        (table(certificate_file="/c"), "expected certificate_file and key_file together", ""),
        (table(instruments=[{"name": "a"}]), "expected instruments.source to be one of simulated, folder, replay", ""),
        (table(instruments="cl51"), "expected instruments to be tables", ""),
        (simulated(payload_format="pdf"), "expected instruments.payload_format to be one of", ""),
        (simulated(count=5), "expected a start_time for the simulated instrument cl51", ""),
        (simulated(start_time="yesterday"), "expected instruments.start_time to be a time such as", ""),
        (table(instruments=2 * simulated()["instruments"]), "two are called cl51", ""),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(broken: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_settings(broken, {})
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FIELDPOST_AGENT_KEEPALIVE": "7"}, "but got FIELDPOST_AGENT_KEEPALIVE"),
        ({"FIELDPOST_AGENT_KEEPALIVE_S": "soon"}, "expected FIELDPOST_AGENT_KEEPALIVE_S to be a whole number"),
        ({"FIELDPOST_AGENT_INSTRUMENTS": "[]"}, "expected a known setting"),
    ],
)
def test_an_environment_variable_that_makes_no_sense_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse_settings(table(), environment)


@pytest.mark.parametrize("content", [None, b"station = ", b"\xff\xfe"])
def test_a_settings_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "station.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=r"station\.toml"):
        load_settings(path, {})


def test_every_setting_is_described_in_a_sentence() -> None:
    rows = describe_settings()
    keys = [key for key, *_ in rows]
    assert len(keys) == len(set(keys))
    assert {"station", "instruments.name", "instruments.seed (source simulated)"} <= set(keys)
    for key, kind, _, description in rows:
        assert description.endswith("."), key
        assert "typing" not in kind and "<" not in kind, key
    defaults = {key: default for key, _, default, _ in rows}
    assert defaults["retention_days"] == str(AgentSettings.__dataclass_fields__["retention_days"].default)
