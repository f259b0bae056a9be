"""The archive of a RecordingServer: the bags that a test gave it. For tests only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import grpc

from fieldpost._archive_fetching import MANIFEST, PAYLOAD_PREFIX, TAG_MANIFEST
from fieldpost._recording.state import PAGE_SIZE, Recorded, RecordedBag
from fieldpost.v1 import archive_service_pb2 as pb
from fieldpost.v1.archive_service_pb2_grpc import ArchiveServicer

_PIECE_BYTES = 1024 * 1024


def make_bag(station: str, instrument: str, day: date, version: int, payload: Mapping[str, bytes]) -> RecordedBag:
    """A valid bag, RFC 8493, and what is recorded of it."""
    data = {f"{PAYLOAD_PREFIX}{name}": content for name, content in payload.items()}
    tags = {
        "bagit.txt": b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n",
        MANIFEST: _manifest(data),
    }
    files = {**data, **tags, TAG_MANIFEST: _manifest(tags)}
    bag = pb.ArchivedBag(
        station=station,
        instrument=instrument,
        day=day.isoformat(),
        bag_version=version,
        path=f"{station}/{instrument}/{day:%Y}/{day}.v{version}",
        manifest_sha256=hashlib.sha256(files[MANIFEST]).digest(),
        observation_count=len(data),
        payload_bytes=sum(map(len, data.values())),
        bag_bytes=sum(map(len, files.values())),
    )
    bag.archive_time.GetCurrentTime()
    bag.check_time.CopyFrom(bag.archive_time)
    return RecordedBag(bag, files)


def _manifest(files: Mapping[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()


class RecordingArchive(ArchiveServicer):
    """Serves bags."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def List(self, request: pb.ListBagsRequest, context: Any) -> pb.ListBagsResponse:
        """One page; the token is the place of the next bag."""
        found = [each.bag for each in self._sorted() if self._matches(request, each.bag)]
        begin = int(request.page_token or 0)
        end = begin + min(request.page_size or PAGE_SIZE, self._recorded.page_size_max)
        return pb.ListBagsResponse(bags=found[begin:end], next_page_token=str(end) if end < len(found) else "")

    def _sorted(self) -> list[RecordedBag]:
        return sorted(self._recorded.bags, key=lambda each: each.bag.path)

    def _matches(self, wanted: pb.ListBagsRequest, bag: pb.ArchivedBag) -> bool:
        return (
            wanted.station in ("", bag.station)
            and wanted.instrument in ("", bag.instrument)
            and wanted.first_day <= bag.day
            and (not wanted.last_day or bag.day <= wanted.last_day)
            and (wanted.has_all_versions or bag.bag_version == max(self._versions(bag)))
        )

    def _versions(self, which: pb.ArchivedBag | pb.GetBagRequest | pb.ReadBagRequest) -> dict[int, RecordedBag]:
        """The versions of a day."""
        day = (which.station, which.instrument, which.day)
        return {
            each.bag.bag_version: each
            for each in self._recorded.bags
            if (each.bag.station, each.bag.instrument, each.bag.day) == day
        }

    def Get(self, request: pb.GetBagRequest, context: Any) -> pb.GetBagResponse:
        """One bag and its files."""
        found = self._find(request, request.bag_version, context)
        files = [
            pb.BagFile(file=name, file_bytes=len(content), sha256=hashlib.sha256(content).digest())
            for name, content in sorted(found.files.items())
        ]
        return pb.GetBagResponse(bag=found.bag, files=files)

    def Read(self, request: pb.ReadBagRequest, context: Any) -> Iterator[pb.ReadBagResponse]:
        """One file in pieces."""
        content = self._find(request, request.bag_version, context).files.get(request.file)
        if content is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no file {request.file}")
            raise AssertionError("abort raises")
        for start in range(request.offset_bytes, len(content), _PIECE_BYTES):
            yield pb.ReadBagResponse(content=content[start : start + _PIECE_BYTES])

    def _find(self, which: pb.GetBagRequest | pb.ReadBagRequest, version: int, context: Any) -> RecordedBag:
        versions = self._versions(which)
        found = versions.get(version or max(versions, default=0))
        if found is None:
            name = f"{which.station}/{which.instrument} of {which.day}"
            context.abort(grpc.StatusCode.NOT_FOUND, f"expected a bag of {name}, but it is not archived")
            raise AssertionError("abort raises")
        return found
