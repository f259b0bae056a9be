"""The names of stations and instruments, and the MQTT topics made of them. Knows nothing of MQTT itself."""

from __future__ import annotations

import re
from zlib import crc32

from fieldpost.errors import InvalidObservationError

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
EPOCH_PATTERN = re.compile(r"[0-9a-f]{32}")

UP = "fieldpost/v1/up"
DOWN = "fieldpost/v1/down"
SHARDS = "0123456789abcdef"
"""The last level of the topic of observations: servers that share the work each take some of them."""


def check_name(kind: str, name: str) -> str:
    """Returns the name, or raises InvalidObservationError where it breaks the rule for names."""
    if not NAME_PATTERN.fullmatch(name):
        raise InvalidObservationError(
            f"expected a {kind} name of 1 to 63 characters a-z, 0-9 and '-', but got {name[:80]!r}",
            hint=f"rename the {kind}; a WIGOS id such as 0-20000-0-06610 fits",
        )
    return name


def check_epoch(epoch: str) -> str:
    """Returns the epoch, or raises InvalidObservationError where it is not 32 hexadecimal digits."""
    if not EPOCH_PATTERN.fullmatch(epoch):
        raise InvalidObservationError(f"expected an epoch of 32 hexadecimal digits, but got {epoch[:80]!r}")
    return epoch


def find_shard(station: str) -> str:
    """The shard of a station, one hexadecimal digit: the last of the CRC-32 of its name. It never changes."""
    return SHARDS[crc32(station.encode()) % len(SHARDS)]


def observations_topic(station: str) -> str:
    """Where a station publishes bundles."""
    return f"{UP}/{station}/observations/{find_shard(station)}"


def status_topic(station: str) -> str:
    """Where a station publishes its status, retained."""
    return f"{UP}/{station}/status"


def results_topic(station: str) -> str:
    """Where a station answers commands."""
    return f"{UP}/{station}/results"


def receipts_topic(station: str) -> str:
    """Where the server publishes receipts for a station."""
    return f"{DOWN}/{station}/receipts"


def commands_topic(station: str) -> str:
    """Where the server publishes commands for a station."""
    return f"{DOWN}/{station}/commands"


def parse_up_topic(topic: str) -> tuple[str, str] | None:
    """Splits an upward topic into (station, kind); None where it is not one of ours.

    Stations from before there were shards publish observations without that level.
    """
    prefix, _, rest = topic.partition(f"{UP}/")
    station, _, below = rest.partition("/")
    kind, level, shard = below.partition("/")
    if prefix or not NAME_PATTERN.fullmatch(station) or kind not in ("observations", "status", "results"):
        return None
    if level and (kind != "observations" or len(shard) != 1 or shard not in SHARDS):
        return None
    return station, kind
