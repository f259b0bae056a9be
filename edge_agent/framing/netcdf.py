"""A NetCDF file is one observation: whole, or not at all. Knows its first bytes and nothing of what is in it.

Sources: NetCDF classic format specification (magic "CDF", then version 1, 2 or 5); HDF5 file format specification,
section II.A, superblock versions 0 to 3.
"""

from __future__ import annotations

from edge_agent.framing.netcdf_classic import classic_size
from edge_agent.framing.parts import Framed, Part, Unframed

CLASSIC_MAGICS = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

# superblock version -> (where the size of an address is told, where the addresses begin)
_HDF5_LAYOUT = {0: (13, 24), 1: (13, 28), 2: (9, 12), 3: (9, 12)}
_END_OF_FILE_ADDRESS = 2  # the third address of every superblock version


def is_netcdf(content: bytes) -> bool:
    """Whether the bytes begin as NetCDF classic or HDF5 files do."""
    return content.startswith((*CLASSIC_MAGICS, HDF5_MAGIC))


def is_whole_netcdf(content: bytes) -> bool:
    """Whether the file is as long as its own header says. It may still grow while its writer has it open."""
    expected_bytes = hdf5_size(content) if content.startswith(HDF5_MAGIC) else classic_size(content)
    return expected_bytes is not None and len(content) >= expected_bytes


def frame_netcdf(content: bytes) -> list[Part]:
    """The whole file as one observation; unframed where it is none, or an HDF5 file that is shorter than it says."""
    if not content:
        return []
    if not is_netcdf(content):
        return [Unframed(content, f"expected a NetCDF file (CDF or HDF5), but it begins with {content[:8]!r}")]
    if content.startswith(HDF5_MAGIC):
        expected_bytes = hdf5_size(content)
        if expected_bytes is None:
            return [Unframed(content, f"expected an HDF5 superblock of version 0 to 3, but got {content[8:48]!r}")]
        if len(content) < expected_bytes:
            return [
                Unframed(content, f"expected an HDF5 file of {expected_bytes} bytes, but got {len(content)}: cut off")
            ]
    return [Framed(content)]


def hdf5_size(content: bytes) -> int | None:
    """The length in bytes that an HDF5 file says it has; None where its superblock cannot be read."""
    layout = _HDF5_LAYOUT.get(content[8]) if len(content) > 8 else None
    if layout is None or len(content) <= layout[0]:
        return None
    address_bytes = content[layout[0]]
    start = layout[1] + _END_OF_FILE_ADDRESS * address_bytes
    address = content[start : start + address_bytes]
    if address_bytes not in (2, 4, 8) or len(address) < address_bytes:
        return None
    return int.from_bytes(address, "little")
