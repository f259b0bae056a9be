"""Writes predictions and stations as text for people, as JSON lines and as CSV. Prints nothing itself."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from fieldpost._table import PredictionTable, json_rows
from fieldpost._times import from_timestamp, iso_utc
from fieldpost.v1 import prediction_pb2
from fieldpost.v1 import stations_service_pb2 as pb


def json_lines(prediction: prediction_pb2.Prediction) -> Iterator[str]:
    """One line for each sample, or one with the failure; NaN is null."""
    return (json.dumps(row, allow_nan=False) for row in json_rows(prediction))


def table_lines(table: PredictionTable) -> Iterator[str]:
    """The table for people: names, units, then one line for each sample."""
    names = list(table.variables)
    head = ["time (UTC)", "station", "instrument", "analysis", *names]
    units = ["", "", "", "", *(table.units[name] for name in names)]
    rows = list(_cells(table, missing="-", digits=6))
    for row in np.flatnonzero(table.is_provisional):
        rows[row][3] += " (provisional)"
    return aligned([head, units, *rows], right_from=4)


def csv_lines(table: PredictionTable) -> Iterator[str]:
    """The table as CSV with a header line; a missing value is an empty field."""
    names = [f"{name} ({table.units[name]})" for name in table.variables]
    yield _csv_line(["time", "station", "instrument", "analysis", "is_provisional", *names])
    rows = _cells(table, missing="", digits=9)  # nine digits bring a float32 back bit for bit
    for cells, is_provisional in zip(rows, table.is_provisional.tolist(), strict=True):
        yield _csv_line([*cells[:4], str(int(is_provisional)), *cells[4:]])


def _csv_line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _cells(table: PredictionTable, *, missing: str, digits: int) -> Iterator[list[str]]:
    nanos = table.time.view(np.int64)
    columns = [_column(table, name, missing, digits) for name in table.variables]
    for row in range(len(table)):
        yield [
            iso_utc(int(nanos[row])),
            str(table.station[row]),
            str(table.instrument[row]),
            f"{table.analysis[row]}@{table.model_version[row]}",
            *(column[row] for column in columns),
        ]


def _column(table: PredictionTable, name: str, missing: str, digits: int) -> list[str]:
    if name in table.flag_meanings:
        return [missing if label is None else label for label in table.labels(name)]
    return [_number(value, missing, digits) for value in table[name].tolist()]


def _number(value: float, missing: str, digits: int) -> str:
    return missing if math.isnan(value) else f"{value:.{digits}g}"


def aligned(rows: list[list[str]], *, right_from: int) -> Iterator[str]:
    """Rows as lines with columns below each other; those from right_from on are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if index >= right_from else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


FIXED = ("time", "prediction_id", "station", "instrument", "analysis", "model_version", "is_provisional", "failure")
"""Keys of a row that are no variable."""


def watch_line(row: dict[str, object]) -> str:
    """One row of json_rows for people who watch."""
    values = [f"{name} {_watched(value)}" for name, value in row.items() if name not in FIXED]
    said = f"failed: {row['failure']}" if "failure" in row else ", ".join(values)
    asked = f"{row['analysis']}@{row['model_version']}" + (" (provisional)" if row["is_provisional"] else "")
    return f"{row['time']}  {row['station']}/{row['instrument']}  {asked}  {said}"


def _watched(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def station_lines(stations: Iterable[pb.Station]) -> Iterator[str]:
    """The stations for people: one line for each instrument, and for each station that has none; then what is wrong."""
    stations = list(stations)
    rows = [["station", "online", "backlog", "instrument", "model", "observations", "last measured (UTC)"]]
    for station in stations:
        online = ("yes" if station.status.is_online else "no") if station.HasField("status") else "-"
        backlog = str(station.status.backlog_count) if station.HasField("status") else "-"
        instruments = list(station.instruments)
        rows += [[station.station, online, backlog, *_instrument_cells(each)] for each in instruments]
        if not instruments:
            rows.append([station.station, online, backlog, "-", "-", "-", "-"])
    yield from aligned(rows, right_from=len(rows[0]))
    for station in stations:
        for alarm in station.status.alarms:
            yield f"ALARM  {station.station}: {alarm}"


def _instrument_cells(instrument: pb.Instrument) -> list[str]:
    last = iso_utc(from_timestamp(instrument.last_measure_time)) if instrument.HasField("last_measure_time") else "-"
    return [instrument.instrument, instrument.instrument_model or "-", str(instrument.observation_count), last]


def message_json(message: Message) -> str:
    """A message as one line of JSON, with the field names of the protocol.

    NaN is null, numbers are numbers, and a SHA-256 is hexadecimal, as everywhere else.
    """
    facts = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return json.dumps(_plain(facts), allow_nan=False)


def _plain(value: object, name: str = "") -> object:
    """Proto JSON writes 64-bit integers as text and NaN as "NaN"; here both become what a program expects."""
    if isinstance(value, dict):
        return {key: _plain(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each, name) for each in value]
    if not isinstance(value, str):
        return value
    if name.endswith(("_count", "_bytes", "_sequence", "sequence", "_id", "_nanos")) and value.lstrip("-").isdecimal():
        return int(value)
    if name == "sha256":
        return base64.b64decode(value).hex()
    if name.endswith(("_deg", "_m", "_s", "_ratio", "_difference")) and value in ("NaN", "Infinity", "-Infinity"):
        return None
    return value
