"""Which instrument wrote a recorded file: found from its content, as an operator would who registers it.

In the field the registry says it; here nobody has filled one in yet.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import netCDF4

from demo.plan import PlannedInstrument, PlannedStation
from edge_agent.framing import recognise

UNRECOGNISED = "unrecognised"
HEAD_BYTES = 1 << 20


def plan_recorded(folder: Path, input_folder: Path) -> list[PlannedStation]:
    """One station whose instruments hand over the files below a folder.

    Files of one series (the same name but for its long numbers) are one instrument.

    Args:
        folder: The user's files; only read.
        input_folder: Gets a folder of links for each instrument.
    """
    series: dict[tuple[str, str], list[Path]] = {}
    for path in _files(folder):
        series.setdefault((_series_name(path, folder), find_instrument_model(path)), []).append(path)
    instruments = []
    for (name, model), paths in sorted(series.items()):
        links = input_folder / name
        shutil.rmtree(links, ignore_errors=True)
        links.mkdir(parents=True)
        for path in paths:
            (links / path.name).symlink_to(path.absolute())
        instruments.append(PlannedInstrument(name, model, {"source": "replay", "path": str(links.absolute())}))
    return [PlannedStation("recorded", instruments)] if instruments else []


def find_instrument_model(path: Path) -> str:
    """The instrument model that wrote the file; "unrecognised" where nothing tells."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    match recognise(head):
        case "vaisala-cl":
            return _vaisala_model(head)
        case "netcdf":
            return _netcdf_model(path)
    return UNRECOGNISED


def _vaisala_model(head: bytes) -> str:
    header = re.search(rb"CT\d{5}|CL.(?:\d{3})[12]([1-9])", head)
    if header is None:
        return UNRECOGNISED
    if header[0].startswith(b"CT"):
        return "ct25k"
    return "cl51" if header[1] == b"6" else "cl31"  # message subclass 6 is the CL51's profile of 1540 gates


def _netcdf_model(path: Path) -> str:
    try:
        with netCDF4.Dataset(path) as dataset:
            names = set(dataset.variables)
    except OSError:
        return UNRECOGNISED  # the magic number of a NetCDF file, and no more
    if {"p_pol", "x_pol"} <= names:
        return "cl61"
    return "chm15k" if names & {"beta_raw", "beta_att"} else UNRECOGNISED


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))


def _series_name(path: Path, folder: Path) -> str:
    """A valid instrument name from the file's place and name, without the dates in it."""
    stem = re.sub(r"\d{6,}", "", path.stem)
    parent = "" if path.parent == folder else path.parent.name
    name = re.sub(r"[^a-z0-9]+", "-", f"{parent}-{stem}".lower()).strip("-")
    return name[:63].strip("-") or "file"
