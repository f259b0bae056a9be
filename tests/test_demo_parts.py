"""Parts of the demo: recognising files, the link that can be cut, the skies it shows, and what it says of heights."""

from __future__ import annotations

import socket
import socketserver
import threading
import tomllib
from argparse import ArgumentTypeError
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.heights import account_for_heights
from demo.link import Link
from demo.plan import PlannedSky, parse_day, plan_simulated, write_agent_settings
from demo.recorded import find_instrument_model, plan_recorded
from edge_agent.source_settings import SimulatedSettings, parse_instrument
from fieldpost.simulation import SKIES, Atmosphere
from fieldpost.v1.prediction_pb2 import Prediction, Variable


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("vaisala/cl31.DAT", "cl31"),
        ("vaisala/cl51.DAT", "cl51"),
        ("vaisala/ct25k.dat", "ct25k"),
        ("vaisala/kauniainen_cl31.dat", "cl31"),
        ("vaisala/uto_cl31_msg.dat", "cl31"),
        ("vaisala/C5061800-first-invalid.DAT", "cl51"),
        ("vaisala/C4122300.DAT", "unrecognised"),
        ("chm15k/raw_chm15k_lidar.nc", "chm15k"),
        ("cl61/live_20210829_224520.nc", "cl61"),
    ],
)
def test_the_instrument_of_a_real_file_is_found_in_its_content(shared_data: Path, name: str, model: str) -> None:
    assert find_instrument_model(shared_data / "ceilometer" / name) == model


def test_files_of_one_series_are_one_instrument(shared_data: Path, tmp_path: Path) -> None:
    (station,) = plan_recorded(shared_data / "ceilometer", tmp_path)
    assert len(list((tmp_path / "cl61-live").iterdir())) == 4
    assert [each.instrument_model for each in station.instruments if each.name == "cl61-live"] == ["cl61"]


def test_a_file_that_only_begins_like_netcdf_is_not_recognised(tmp_path: Path) -> None:
    path = tmp_path / "broken.nc"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert find_instrument_model(path) == "unrecognised"


@pytest.fixture
def echo_port() -> Iterator[int]:
    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(1024):
                self.request.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_cut_link_breaks_what_passes_and_a_mended_one_lets_it_in_again(echo_port: int) -> None:
    link = Link(echo_port)
    with socket.create_connection(("127.0.0.1", link.port), 5) as connection:
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"
        link.cut()
        connection.settimeout(5)
        with pytest.raises(ConnectionError):
            while True:
                connection.sendall(b"x")
                if not connection.recv(1):
                    raise ConnectionResetError
    link.mend()
    with socket.create_connection(("127.0.0.1", link.port), 5) as connection:
        connection.sendall(b"again")
        assert connection.recv(5) == b"again"
    link.close()


def test_a_day_that_is_none_is_refused_in_words() -> None:
    assert parse_day("2026-06-21") == datetime(2026, 6, 21, tzinfo=UTC)
    with pytest.raises(ArgumentTypeError, match="expected a day such as 2026-06-21, but got 'soon'"):
        parse_day("soon")


@pytest.mark.parametrize("date", [(2026, 1, 1), (2026, 6, 21), (2027, 11, 21), (2028, 2, 29)])
def test_whatever_the_date_fair_weather_clouds_rain_and_fog_are_seen(date: tuple[int, int, int]) -> None:
    day = datetime(*date, tzinfo=UTC)
    times = day.timestamp() + np.arange(0, 86_400, 60.0)
    shares = {}
    for station in plan_simulated(day, 2880):
        (instrument,) = station.instruments
        assert instrument.sky is not None
        atmosphere = instrument.sky.atmosphere()
        assert (atmosphere.latitude_deg, atmosphere.longitude_deg) == (station.latitude_deg, station.longitude_deg)
        sky = atmosphere.truth(times).sky
        shares[station.name] = {name: float((sky == place).mean()) for place, name in enumerate(SKIES)}
    assert shares["lindenberg"]["rain"] == shares["lindenberg"]["fog"] == 0
    assert min(shares["payerne"]["cloud"], shares["payerne"]["rain"], shares["magurele"]["fog"]) > 0.01
    assert all(share["rain"] + share["fog"] < 0.6 for share in shares.values())


def test_the_station_of_the_demo_simulates_the_sky_that_the_demo_knows(tmp_path: Path) -> None:
    station = plan_simulated(datetime(2026, 6, 21, tzinfo=UTC), 2880)[1]
    write_agent_settings(tmp_path / "a.toml", station, 1883, tmp_path / "buffer")
    (entry,) = tomllib.loads((tmp_path / "a.toml").read_text())["instruments"]
    settings = parse_instrument(entry)
    assert isinstance(settings, SimulatedSettings)
    sky = station.instruments[0].sky
    assert sky == PlannedSky(settings.seed, settings.climate, settings.latitude_deg or 0, settings.longitude_deg or 0)


def prediction(unix_s: float, height_m: float, **facts: Any) -> Prediction:
    thickness = "atmosphere_boundary_layer_thickness"
    values = {thickness: height_m, f"{thickness}_standard_error": 50.0, "quality_flag": 2.0}
    variables = [Variable(name=name, unit="m", values=[value]) for name, value in values.items()]
    return Prediction(sample_unix_nanos=[int(unix_s * 1e9)], variables=variables, **facts)


def test_heights_are_counted_and_compared_with_the_truth() -> None:
    atmosphere = Atmosphere(1)
    times = 20_600 * 86_400 + np.arange(0, 86_400, 300.0)
    truth = atmosphere.truth(times)
    found_m = truth.mixing_height_m + 40
    found_m[:72] = truth.residual_layer_height_m[:72]  # six hours of the night
    made = [prediction(t, h, is_provisional=k < 5) for k, (t, h) in enumerate(zip(times, found_m, strict=True))]
    made += [Prediction(failure="expected a telegram, but got none")]
    account = account_for_heights(1, made, atmosphere)
    assert (account.method, account.predicted, account.provisional) == ("wavelet", 288, 5)
    assert account.availability_percent == 100
    assert account.wrong_layer_percent == 25
    away_m = np.abs(found_m - truth.mixing_height_m)
    assert account.mae_m == pytest.approx(away_m.mean(), rel=1e-3)
    assert account.rmse_m == pytest.approx(np.sqrt(np.square(away_m).mean()), rel=1e-3)


def test_without_a_truth_heights_are_only_counted() -> None:
    account = account_for_heights(1001, [prediction(1.7e9, 500)], None)
    assert (account.method, account.predicted, account.mae_m) == ("version 1001", 1, None)
