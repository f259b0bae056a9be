"""What a bag says of itself: who the instrument was, what is inside, which software wrote it. Pure."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import asdict

from flows.bags.day import Contents
from flows.bags.observations_file import CSV_NAME, TAR_NAME, ZSTD_LEVEL, format_instant
from flows.bags.predictions_file import file_name
from server.archive.bags import InstrumentDay

PROVENANCE_NAME = "provenance.json"
FORMAT = 2
"""Rises when a bag holds something that it did not hold before; docs/archive.md says what. Bags of 1 name no format."""
SOFTWARE_VERSION = importlib.metadata.version("fieldpost")


def describe(day: InstrumentDay, contents: Contents, version: int, archive_unix_nanos: int) -> bytes:
    """The file provenance.json."""
    facts = {
        "format": FORMAT,
        "software": {"name": "fieldpost", "version": SOFTWARE_VERSION},
        "archive_time": format_instant(archive_unix_nanos),
        "archive_unix_nanos": archive_unix_nanos,
        "day": day.day.isoformat(),
        "version": version,
        "instrument": {key: value for key, value in asdict(day).items() if key not in ("instrument_id", "day")},
        "observations": {
            "files": [TAR_NAME, CSV_NAME],
            "observation_count": contents.observation_count,
            "payload_bytes": contents.payload_bytes,
            "epochs": list(contents.epochs),
            "zstd_level": ZSTD_LEVEL,
        },
        "predictions": [
            {
                "file": file_name(series),
                "analysis": series.model.analysis,
                "model_version": series.model.version,
                "prediction_count": series.prediction_count,
                "failure_count": series.failure_count,
                "row_count": series.row_count,
            }
            for series in contents.series
        ],
        "contents_sha256": contents.sha256,
    }
    return (json.dumps(facts, indent=2) + "\n").encode()


def bag_info(day: InstrumentDay, contents: Contents, version: int, archive_unix_nanos: int) -> dict[str, str]:
    """The lines of bag-info.txt, RFC 8493 section 2.2.2; they name no person."""
    external = f"{day.station}/{day.instrument}/{day.day}"
    return {
        "Bag-Software-Agent": f"fieldpost {SOFTWARE_VERSION}",
        "Bagging-Date": format_instant(archive_unix_nanos)[:10],
        "External-Identifier": f"{external}.v{version}",
        "Bag-Group-Identifier": external,
        "External-Description": f"{contents.observation_count} observations and {contents.prediction_count} "
        f"predictions of the {day.instrument_model} {day.station}/{day.instrument} on {day.day} (UTC)",
    }
