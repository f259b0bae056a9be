"""The folder of refused messages, on real disks."""

from __future__ import annotations

from pathlib import Path

from small_disk import small_disk

from server.mqtt.refused import RefusedMessages


def test_a_full_disk_costs_the_copy_of_a_refused_message_and_nothing_else(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 64 * 1024) as small:
        refused = RefusedMessages(small / "refused")
        refused.keep("fieldpost/v1/x", bytes(200_000), "too large for this disk")
        assert refused.count == 1
        assert list((small / "refused").iterdir()) == []  # not even a part of it: the room is for others
        refused.keep("fieldpost/v1/x", b"small", "now there is room")
        assert sorted(path.suffix for path in (small / "refused").iterdir()) == [".bin", ".json"]
