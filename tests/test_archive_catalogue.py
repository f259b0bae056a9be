"""The commands `fieldpost archive ...`, what they print, and the archive of a RecordingServer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import bagit
import pytest
from typer.testing import CliRunner, Result

from fieldpost import BrokenStateError, Client
from fieldpost._archive_fetching import Fetch
from fieldpost._archive_render import bag_lines, total_line
from fieldpost._archive_requests import ArchivedBag, to_bag, to_file
from fieldpost.cli import app
from fieldpost.testing import RecordingServer
from fieldpost.v1 import archive_service_pb2 as pb

ROOT = Path(__file__).resolve().parent.parent
MIB = 1024 * 1024
NOW = datetime(2025, 7, 1, 12, tzinfo=UTC)
BAG = ArchivedBag(
    station="lindenberg",
    instrument="cl51",
    day=date(2025, 6, 1),
    version=2,
    path="lindenberg/cl51/2025/2025-06-01.v2",
    manifest_sha256="ab" * 32,
    observation_count=5760,
    prediction_count=11520,
    payload_bytes=70_000_000,
    bag_bytes=20_000_000,
    archive_time=NOW,
    check_time=NOW - timedelta(days=3),
    copy_time=None,
    damage="",
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingServer]:
    """A server with three days of one instrument, the first in two versions, and one of another."""
    with RecordingServer(page_size_max=2) as running:
        monkeypatch.setenv("FIELDPOST_SERVER", running.address)
        for day, version in ((1, 1), (1, 2), (2, 1), (4, 1)):
            content = f"{day} {version}".encode() * 1000
            running.add_bag("lindenberg", "cl51", date(2025, 6, day), {"a.dat": content}, version=version)
        running.add_bag("payerne", "chm15k", date(2025, 6, 1), {"a.nc": bytes(2 * MIB), "b.csv": b""})
        yield running


def run(*words: str, status: int = 0) -> Result:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == status, result.output
    return result


def test_a_table_tells_sizes_ratio_and_when_each_bag_was_checked() -> None:
    head, first, second, damaged = bag_lines(
        [BAG, replace(BAG, version=1, payload_bytes=None, check_time=None, damage="it is not there")], NOW
    )
    assert " ".join(head.split()) == (
        "instrument day (UTC) v observations predictions measured archived ratio checked copy"
    )
    assert " ".join(first.split()) == "lindenberg/cl51 2025-06-01 2 5,760 11,520 70.0 MB 20.0 MB 3.50 3 days ago -"
    assert " ".join(second.split()) == "lindenberg/cl51 2025-06-01 1 5,760 11,520 - 20.0 MB - DAMAGED -"
    assert damaged == "damaged: lindenberg/cl51 of 2025-06-01, version 1: it is not there"
    assert total_line([BAG, BAG]) == "2 bags, 11,520 observations; 140.0 MB measured, 40.0 MB archived, 3.50 to one"


def test_the_archive_is_listed_over_several_pages(server: RecordingServer) -> None:
    result = run("archive", "list")
    assert len(result.stdout.splitlines()) == 1 + 4
    assert result.stderr.startswith("4 bags, 5 observations; 2.1 MB measured")
    assert len(run("archive", "list", "--all-versions").stdout.splitlines()) == 1 + 5
    days = run("archive", "list", "--station", "lindenberg", "--first-day", "2025-06-02", "--json").stdout.splitlines()
    assert [json.loads(line)["day"] for line in days] == ["2025-06-02", "2025-06-04"]
    assert run("archive", "list", "--last-day", "2025-05-01").stderr == "no bags match\n"
    assert "expected a UTC day" in run("archive", "list", "--first-day", "June", status=2).stderr


def test_a_day_and_a_range_of_days_are_fetched_and_are_valid_bags(server: RecordingServer, tmp_path: Path) -> None:
    out = ("--output", str(tmp_path))
    (folder,) = run("archive", "get", "lindenberg/cl51", "2025-06-01", *out).stdout.splitlines()
    assert folder == str(tmp_path / "lindenberg/cl51/2025/2025-06-01.v2")
    run("archive", "get", "lindenberg/cl51", "2025-06-01", "--version", "1", *out)
    lines = run("archive", "get", "lindenberg/cl51", "2025-06-01..2025-06-30", *out, "--json").stdout.splitlines()
    assert [json.loads(line)["day"] for line in lines] == ["2025-06-01", "2025-06-02", "2025-06-04"]
    bags = sorted(tmp_path.glob("*/*/*/*"))
    assert [each.name for each in bags] == ["2025-06-01.v1", "2025-06-01.v2", "2025-06-02.v1", "2025-06-04.v1"]
    for bag in bags:
        bagit.Bag(str(bag)).validate()


def test_what_cannot_be_fetched_is_told_with_what_to_do(server: RecordingServer, tmp_path: Path) -> None:
    result = run("archive", "get", "lindenberg/cl51", "2025-06-03", status=1)
    what, what_to_do = result.stderr.splitlines()
    assert "expected a bag of lindenberg/cl51 of 2025-06-03, but it is not archived" in what
    assert what_to_do == "`fieldpost archive list` shows what is archived"
    result = run("archive", "get", "lindenberg/cl51", "2024-01-01..2024-02-01", status=1)
    assert "expected bags of lindenberg/cl51 from 2024-01-01 to 2024-02-01" in result.stderr
    for words in (
        ("lindenberg", "2025-06-01"),
        ("lindenberg/cl51", "yesterday"),
        ("lindenberg/cl51", "2025-06-02..2025-06-01"),
        ("lindenberg/cl51", "2025-06-01..2025-06-02", "--version", "1"),
    ):
        assert run("archive", "get", *words, status=2).stderr.startswith("fieldpost: expected")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "data/../../x", "", "data//x", "./x"])
def test_a_name_that_leads_out_of_the_bag_is_refused(name: str) -> None:
    with pytest.raises(BrokenStateError, match="expected the name of a file in a bag"):
        to_file(pb.BagFile(file=name))


def test_a_station_that_leads_out_of_the_folder_is_refused() -> None:
    with pytest.raises(BrokenStateError, match="expected a bag, but"):
        to_bag(pb.ArchivedBag(station="../..", instrument="cl51", day="2025-06-01", bag_version=1))


def test_files_that_no_manifest_promises_are_not_taken(server: RecordingServer, tmp_path: Path) -> None:
    bag, files = server.bags[-1]
    files["data/more.dat"] = b"nobody promised this"
    with Client(server.address) as client:
        found = client.archive.get("payerne", "chm15k", "2025-06-01")
        with pytest.raises(BrokenStateError, match=r"these differ: data/more\.dat"):
            client.archive.fetch(found, tmp_path)
        assert not Fetch(found, (), tmp_path).final.exists()
        del files["data/more.dat"]
        assert client.archive.fetch(found, tmp_path) == tmp_path / bag.path


def test_the_example_of_the_sdk_page_fetches_a_bag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "sdk.md").read_text()
    (block,) = re.findall(r"## The archive\n.*?```python\n(.*?)```", page, re.DOTALL)
    with RecordingServer() as server:
        server.add_bag("station-1", "ceilometer", date(2025, 6, 1), {"a.dat": b"telegram"})
        exec(block.replace('"127.0.0.1:50051"', repr(server.address)), {"Client": Client})
    printed = capsys.readouterr().out
    assert printed.endswith("bags/station-1/ceilometer/2025/2025-06-01.v1\n")
    bagit.Bag("bags/station-1/ceilometer/2025/2025-06-01.v1").validate()
