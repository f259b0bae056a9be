"""Stations on bad networks: a real agent behind a link that is slow, lossy or cut; brokers that freeze or refuse."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bad_link.broker import Broker, running
from bad_link.far_station import INSTRUMENTS, FarStation, Recorded, repeated_share, wait_for
from bad_link.link import BadLink, bad_link, why_impossible
from chaos.outage import run_outage
from conftest import skip_or_fail
from test_edge_station import Server

from demo import processes
from fieldpost.v1 import observation_pb2

pytestmark = [pytest.mark.mosquitto, pytest.mark.chaos]

WINDOW_OBSERVATIONS = 256


@pytest.fixture
def link() -> Iterator[BadLink]:
    reason = why_impossible()
    if "root" in reason:
        pytest.skip(reason)
    if reason:
        skip_or_fail(reason)
    with bad_link() as made:
        yield made


@pytest.fixture
def broker(tmp_path: Path, link: BadLink, free_port: int) -> Iterator[Broker]:
    """One that a station behind the link can reach."""
    with running(Broker(tmp_path, free_port, [link.address])) as started:
        yield started


@pytest.fixture
def make_server() -> Iterator[Callable[..., Server]]:
    with contextlib.ExitStack() as stack:

        def make(*arguments: object) -> Server:
            server = Server(*arguments)  # type: ignore[arg-type]
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture
def make_station(tmp_path: Path) -> Iterator[Callable[..., FarStation]]:
    stations: list[FarStation] = []

    def make(*arguments: object, **settings: object) -> FarStation:
        stations.append(FarStation(tmp_path, *arguments, **settings))  # type: ignore[arg-type]
        return stations[-1]

    yield make
    for station in stations:
        if station.process is not None and station.process.poll() is None:
            station.kill()


# --- links ---


def test_delay_loss_duplicates_and_reordering_lose_nothing_even_under_kill_9(
    link: BadLink,
    broker: Broker,
    make_server: Callable[..., Server],
    make_station: Callable[..., FarStation],
    tmp_path: Path,
) -> None:
    server = make_server(broker.port)
    recorded = Recorded(tmp_path, count=200, line_bytes=120, per_s=50)
    link.spoil(delay_ms=150, jitter_ms=50, loss=0.1, duplication=0.05, reordering=0.2, corruption=0.01)
    station = make_station(link, [broker.port], recorded.settings)
    known_at_kills = 0
    for wanted in (50, 200):
        station.start()
        server.wait_until(lambda wanted=wanted: len(server.held) >= wanted, 30)
        station.kill()
        known_at_kills += len(server.held)
    station.start()
    server.wait_until(lambda: len(server.held) >= recorded.count, 40)
    counts = link.spoil()
    station.stop()
    recorded.assert_held(server, station)
    assert min(counts.values()) > 0, f"the link was not bad: {counts}"
    # What is settled is written down now and then only; a kill before costs as many duplicates, and a window.
    repeated_count = server.came_count - recorded.count
    assert repeated_count < known_at_kills + 2 * WINDOW_OBSERVATIONS


def test_a_link_that_is_cut_again_and_again_without_a_word_loses_nothing(
    link: BadLink,
    broker: Broker,
    make_server: Callable[..., Server],
    make_station: Callable[..., FarStation],
    tmp_path: Path,
) -> None:
    server = make_server(broker.port)
    recorded = Recorded(tmp_path, count=300, line_bytes=200, per_s=60)
    station = make_station(link, [broker.port], recorded.settings, keepalive_s=1)
    station.start()
    for cut_s in (0.5, 2.5, 2.5):  # shorter and longer than what the keepalive bears
        known = len(server.held)
        server.wait_until(lambda known=known: len(server.held) > known, 20)
        link.spoil(is_cut=True)
        time.sleep(cut_s)
        link.spoil()
    server.wait_until(lambda: len(server.held) == recorded.count, 30)
    station.stop()
    recorded.assert_held(server, station)
    assert station.log().count('"message": "connected"') >= 2, "the keepalive noticed nothing"
    assert repeated_share(server) < 1.0, "a window at most for each cut"


def test_a_slow_link_is_not_filled_with_what_is_still_under_way(
    link: BadLink,
    broker: Broker,
    make_server: Callable[..., Server],
    make_station: Callable[..., FarStation],
    tmp_path: Path,
) -> None:
    server = make_server(broker.port)
    recorded = Recorded(tmp_path, count=90, line_bytes=500)
    link.spoil(rate_bytes_per_s=20_000, delay_ms=40)
    # A bundle takes three times as long as the station waits for a receipt.
    station = make_station(link, [broker.port], recorded.settings, resend_after_s=0.5)
    station.start()
    server.wait_until(lambda: len(server.held) == recorded.count, 30)
    station.stop()
    recorded.assert_held(server, station)
    # It was 3.4 while the station sent a whole window again after each wait.
    assert repeated_share(server) < 0.5


# --- brokers ---


def test_a_broker_that_freezes_while_connected_is_left_and_gets_the_rest_once_it_thaws(
    make_server: Callable[..., Server], make_station: Callable[..., FarStation], tmp_path: Path, free_port: int
) -> None:
    with running(Broker(tmp_path, free_port)) as broker:
        server = make_server(free_port)
        recorded = Recorded(tmp_path, count=120, line_bytes=100, per_s=40)
        station = make_station(None, [free_port], recorded.settings, keepalive_s=1)
        station.start()
        server.wait_until(lambda: len(server.held) >= 40)
        broker.send(signal.SIGSTOP)
        wait_for(lambda: "nothing came from the broker for 1.5 s: it hangs" in station.alarms(), "the alarm")
        broker.send(signal.SIGCONT)
        server.wait_until(lambda: len(server.held) == recorded.count, 30)
        wait_for(lambda: station.alarms() == "[]", "the end of the alarm")
        station.stop()
        recorded.assert_held(server, station)
        assert repeated_share(server) < 1.0


def test_a_broker_frozen_while_connecting_is_passed_over_and_is_taken_again_once_the_other_one_is_gone(
    make_server: Callable[..., Server], make_station: Callable[..., FarStation], tmp_path: Path
) -> None:
    ports = [processes.free_port(), processes.free_port()]
    with running(Broker(tmp_path, ports[0])) as first, running(Broker(tmp_path, ports[1])) as second:
        servers = [make_server(port) for port in ports]
        recorded = Recorded(tmp_path, count=250, line_bytes=50, per_s=40)
        first.send(signal.SIGSTOP)
        station = make_station(None, ports, recorded.settings, keepalive_s=1)
        station.start()
        wait_for(lambda: f"no connection to mqtt://127.0.0.1:{ports[0]}" in station.log(), "the alarm")
        assert "it hangs" in station.log()
        servers[1].wait_until(lambda: len(servers[1].held) >= 100)
        first.send(signal.SIGCONT)
        second.kill()
        everything = set(range(1, recorded.count + 1))
        servers[0].wait_until(lambda: set(servers[0].held) | set(servers[1].held) == everything, 30)
        station.stop()
        servers[0].held |= servers[1].held
        recorded.assert_held(servers[0], station)


def test_a_broker_that_wants_a_password_is_an_alarm_that_says_so_and_nothing_is_lost(
    make_server: Callable[..., Server], make_station: Callable[..., FarStation], tmp_path: Path, free_port: int
) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("")
    recorded = Recorded(tmp_path, count=20, line_bytes=50)
    station = make_station(None, [free_port], recorded.settings)
    with running(Broker(tmp_path, free_port, lines=["allow_anonymous false", f"password_file {passwords}"])):
        station.start()
        wait_for(lambda: "refused the connection: it gives this station no access" in station.alarms(), "an alarm")
    with running(Broker(tmp_path, free_port)):
        server = make_server(free_port)
        server.wait_until(lambda: len(server.held) == recorded.count)
        wait_for(lambda: station.alarms() == "[]", "the end of the alarm")
        station.stop()
        recorded.assert_held(server, station)


def test_a_broker_that_acknowledges_and_drops_is_an_alarm_that_ends_once_receipts_come(
    make_server: Callable[..., Server], make_station: Callable[..., FarStation], tmp_path: Path, free_port: int
) -> None:
    """As Mosquitto does under MQTT 3.1.1 where its access list denies the topic."""
    access_list = tmp_path / "access"
    access_list.write_text("topic readwrite fieldpost/v1/down/#\ntopic read fieldpost/v1/up/#\n")
    with running(Broker(tmp_path, free_port, lines=[f"acl_file {access_list}"])) as broker:
        server = make_server(free_port)
        recorded = Recorded(tmp_path, count=100, line_bytes=50)
        station = make_station(None, [free_port], recorded.settings, resend_after_s=0.3)
        station.start()
        expected = f"mqtt://127.0.0.1:{free_port} acknowledges what the station sends"
        wait_for(lambda: expected in station.alarms() and "but no receipt comes" in station.alarms(), "the alarm")
        assert (server.came_count, server.statuses) == (0, []), "the broker let something through"
        access_list.write_text("topic readwrite fieldpost/v1/#\n")
        broker.send(signal.SIGHUP)
        server.wait_until(lambda: len(server.held) == recorded.count, 30)
        wait_for(lambda: station.alarms() == "[]", "the end of the alarm")
        station.stop()
        recorded.assert_held(server, station)


# --- metered links ---


def test_a_rate_limit_holds_within_a_tenth_and_fresh_observations_do_not_wait_for_the_backlog(
    make_server: Callable[..., Server], make_station: Callable[..., FarStation], tmp_path: Path, free_port: int
) -> None:
    rate_bytes_per_s = 40_000
    fresh_interval_s = 0.15
    came: list[tuple[float, int, str]] = []  # when, payload bytes, instrument

    def note(observation: observation_pb2.Observation) -> None:
        came.append((time.monotonic(), len(observation.payload), observation.header.instrument))

    backlog = Recorded(tmp_path, count=130, line_bytes=1000)
    make_station(None, [9], backlog.settings).run_until("source ended", len(INSTRUMENTS))
    (tmp_path / "fresh.txt").write_text("".join(f"{number:099d}\n" for number in range(30)))
    fresh = f'\n[[instruments]]\nname = "fresh"\nsource = "replay"\npath = "{tmp_path}/fresh.txt"\n'
    fresh += f'payload_format = "line"\nspeed_up = 1.0\ninterval_s = {fresh_interval_s}\n'
    with running(Broker(tmp_path, free_port)):
        make_server(free_port, note)
        limits = {"rate_limit_bytes_per_s": rate_bytes_per_s, "bundle_bytes": 16 << 10}
        station = make_station(None, [free_port], backlog.settings + fresh, **limits)
        station.finish()
    # The first bundle is paid for after it was sent.
    first_bytes = sum(size for at, size, _ in came if at - came[0][0] < 0.05)
    measured = (sum(size for _, size, _ in came) - first_bytes) / (came[-1][0] - came[0][0])
    assert measured == pytest.approx(rate_bytes_per_s, rel=0.1)
    fresh_came_s = [at for at, _, instrument in came if instrument == "fresh"]
    waits_s = [at - (fresh_came_s[0] + index * fresh_interval_s) for index, at in enumerate(fresh_came_s)]
    assert len(waits_s) == 30
    assert max(waits_s) < 2.0, "the time of two bundles is enough, and what a busy machine takes"


# --- long outages ---


def test_what_was_measured_while_the_server_was_gone_drains_and_the_agent_stays_small(tmp_path: Path) -> None:
    outcome = run_outage(tmp_path, 5000)
    assert outcome.is_clean, outcome
    assert outcome.sent_count is not None
    assert outcome.sent_count < 1.1 * outcome.observations
