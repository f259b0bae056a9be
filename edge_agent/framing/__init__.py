"""Bytes in, observations out: one pure function for each payload format. Knows no file, source or clock.

Nothing is dropped in silence: the parts that come out, put together, are the bytes that went in.
"""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.framing.netcdf import frame_netcdf, is_netcdf
from edge_agent.framing.parts import Filler, Framed, Part, Unframed
from edge_agent.framing.vaisala import frame_vaisala, looks_like_vaisala

__all__ = ["FORMATS", "Filler", "Framed", "Part", "Unframed", "frame", "recognise"]

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


FORMATS: dict[str, Callable[[bytes], list[Part]]] = {
    "vaisala-cl": frame_vaisala,
    "netcdf": frame_netcdf,
    "file": _frame_file,
}
"""The payload formats by name."""


def frame(payload_format: str, content: bytes) -> list[Part]:
    """Splits bytes of a known format into observations and the rest.

    Args:
        payload_format: A key of FORMATS.
        content: What a source read.

    Returns:
        Parts whose raw bytes, put together, are the content.
    """
    return FORMATS[payload_format](content)


def recognise(content: bytes) -> str | None:
    """The payload format that the bytes have by their looks; None where no format fits."""
    if is_netcdf(content):
        return "netcdf"
    is_dicom = content[_DICOM_PREAMBLE_BYTES : _DICOM_PREAMBLE_BYTES + 4] == _DICOM_MAGIC
    if is_dicom or content.startswith(_WHOLE_FILE_MAGICS):
        return "file"
    return "vaisala-cl" if looks_like_vaisala(content) else None
