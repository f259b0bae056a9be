"""The bad link itself: what becomes of packets, by the numbers, and what is left of a link whose test was killed."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from bad_link.fate import Departure, Impairment, OneWay, with_wrong_bit
from bad_link.link import remove_leftovers, why_impossible
from conftest import skip_or_fail

PACKETS = 5000


def departures(impairment: Impairment, count: int = PACKETS, seed: int = 1) -> list[list[Departure]]:
    """What becomes of packets of 1000 bytes, one each millisecond."""
    way = OneWay(seed)
    way.impairment = impairment
    return [way.take(1000, number / 1000) for number in range(count)]


def test_a_good_link_hands_over_every_packet_at_once() -> None:
    assert departures(Impairment(), 3) == [[Departure(0.0)], [Departure(0.001)], [Departure(0.002)]]


def test_the_same_seed_gives_packets_the_same_fate() -> None:
    how = Impairment(delay_ms=5, jitter_ms=5, loss=0.5, duplication=0.5, corruption=0.5)
    assert departures(how, 100) == departures(how, 100)
    assert departures(how, 100) != departures(how, 100, seed=2)


def test_losses_duplicates_and_errors_are_as_frequent_as_they_are_to_be() -> None:
    found = departures(Impairment(loss=0.1, duplication=0.05, corruption=0.02))
    assert sum(not each for each in found) / PACKETS == pytest.approx(0.1, rel=0.2)
    assert sum(len(each) == 2 for each in found) / PACKETS == pytest.approx(0.9 * 0.05, rel=0.2)
    wrong = sum(departure.wrong_bit is not None for each in found for departure in each)
    assert wrong / PACKETS == pytest.approx(0.9 * 1.05 * 0.02, rel=0.3)


def test_delays_lie_around_the_mean_and_reordered_packets_have_none() -> None:
    found = departures(Impairment(delay_ms=150, jitter_ms=50, reordering=0.2))
    delays_s = [each[0].at_s - number / 1000 for number, each in enumerate(found)]
    delayed = [delay_s for delay_s in delays_s if delay_s > 1e-6]
    assert 1 - len(delayed) / PACKETS == pytest.approx(0.2, rel=0.2)
    assert min(delayed) >= 0.0999
    assert max(delayed) <= 0.2001
    assert sum(delayed) / len(delayed) == pytest.approx(0.15, rel=0.05)


def test_a_rate_spreads_packets_out_and_loses_what_finds_the_queue_full() -> None:
    found = departures(Impairment(rate_bytes_per_s=100_000, queue_bytes=20_000), count=1000)
    arrived_s = [each[0].at_s for each in found if each]
    assert all(later - earlier >= 0.00999 for earlier, later in itertools.pairwise(arrived_s))
    assert len(arrived_s) == pytest.approx(100 + 20, abs=2), "a second of packets, and the queue"
    assert max(each[0].at_s - number / 1000 for number, each in enumerate(found) if each) <= 0.201


def test_nothing_passes_a_link_that_is_cut() -> None:
    assert not any(departures(Impairment(is_cut=True), 100))


def test_a_wrong_bit_is_one_bit() -> None:
    assert with_wrong_bit(b"\x00\x00", None) == b"\x00\x00"
    assert with_wrong_bit(b"\x00\x00", 9) == b"\x00\x02"


def test_what_a_killed_test_leaves_is_removed_by_the_next_one() -> None:
    if reason := why_impossible():
        pytest.skip(reason) if "root" in reason else skip_or_fail(reason)
    code = (
        "import time\nfrom bad_link.link import bad_link\n"
        "with bad_link() as link:\n    print(link.namespace, flush=True)\n    time.sleep(60)"
    )
    folder = Path(__file__).resolve().parent.parent
    with subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        namespace = maker.stdout.readline().strip()
        maker.kill()
    assert Path("/run/netns", namespace).exists(), "nothing was left"
    remove_leftovers()
    assert not Path("/run/netns", namespace).exists()
