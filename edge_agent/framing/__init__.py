"""Bytes in, observations out: one pure function for each payload format. Knows no file, source or clock.

Nothing is dropped in silence: the parts that come out, put together, are the bytes that went in. `frame` has all bytes
of a file at once; `stream_framer` makes what takes them as they come.
"""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.framing.fixed_length import FixedLengthCutter, frame_fixed_length
from edge_agent.framing.idle_gap import IdleGapCutter
from edge_agent.framing.lines import LineCutter, frame_lines
from edge_agent.framing.netcdf import frame_netcdf, is_netcdf
from edge_agent.framing.parameters import FramingParameters
from edge_agent.framing.parts import Filler, Framed, Part, Unframed
from edge_agent.framing.streams import DatagramFramer, Framer, StreamFramer
from edge_agent.framing.vaisala import frame_vaisala, looks_like_vaisala
from edge_agent.framing.vaisala_stream import VaisalaCutter

__all__ = [
    "FORMATS",
    "STREAM_FORMATS",
    "Filler",
    "Framed",
    "Framer",
    "FramingParameters",
    "Part",
    "Unframed",
    "frame",
    "recognise",
    "stream_framer",
]

# The first bytes of files that are one observation each and need no further framing.
_WHOLE_FILE_MAGICS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",  # JPEG
    b"II*\x00",  # TIFF
    b"MM\x00*",
)
_DICOM_MAGIC = b"DICM"
_DICOM_PREAMBLE_BYTES = 128


def _frame_file(content: bytes) -> list[Part]:
    return [Framed(content)] if content else []


FORMATS: dict[str, Callable[[bytes, FramingParameters], list[Part]]] = {
    "vaisala-cl": lambda content, _: frame_vaisala(content),
    "netcdf": lambda content, _: frame_netcdf(content),
    "file": lambda content, _: _frame_file(content),
    "line": lambda content, parameters: frame_lines(content, parameters.line_end),
    "fixed-length": lambda content, p: frame_fixed_length(content, p.frame_bytes, p.frame_start),
}
"""The payload formats of files by name."""

STREAM_FORMATS: dict[str, Callable[[FramingParameters], Framer]] = {
    "vaisala-cl": lambda parameters: StreamFramer(VaisalaCutter(), parameters),
    "line": lambda parameters: StreamFramer(LineCutter(parameters.line_end), parameters),
    "fixed-length": lambda p: StreamFramer(FixedLengthCutter(p.frame_bytes, p.frame_start), p),
    "idle-gap": lambda parameters: StreamFramer(IdleGapCutter(), parameters),
    "file": DatagramFramer,
}
"""The payload formats of streams by name; "file" takes each chunk as a whole, and so is for datagrams only."""

_NO_PARAMETERS = FramingParameters()


def frame(payload_format: str, content: bytes, parameters: FramingParameters = _NO_PARAMETERS) -> list[Part]:
    """Splits bytes of a known format into observations and the rest.

    Args:
        payload_format: A key of FORMATS.
        content: What a source read.
        parameters: What the format needs to be told.

    Returns:
        Parts whose raw bytes, put together, are the content.
    """
    return FORMATS[payload_format](content, parameters)


def stream_framer(payload_format: str, parameters: FramingParameters) -> Framer:
    """Makes a framer for one stream.

    Args:
        payload_format: A key of STREAM_FORMATS.
        parameters: What the format needs to be told.
    """
    return STREAM_FORMATS[payload_format](parameters)


def recognise(content: bytes) -> str | None:
    """The payload format that the bytes have by their looks; None where no format fits."""
    if is_netcdf(content):
        return "netcdf"
    is_dicom = content[_DICOM_PREAMBLE_BYTES : _DICOM_PREAMBLE_BYTES + 4] == _DICOM_MAGIC
    if is_dicom or content.startswith(_WHOLE_FILE_MAGICS):
        return "file"
    return "vaisala-cl" if looks_like_vaisala(content) else None
