"""A model package: one zip file with a model, what it expects, and a sample that proves it. Runs no model.

Its identity is the SHA-256 of the whole file. It is read member by member against a list of what may be there: no
name that is not expected, nothing larger than it may be, nothing pickled.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edge_agent.quick_look.manifest import Manifest, parse_manifest, write_manifest
from fieldpost.errors import InvalidRequestError

SUFFIX = ".fpmodel"
PACKAGE_BYTES_MAX = 4 << 20
SAMPLE_NAMES = ("profile", "height_m", "quality")
MEMBER_BYTES_MAX: Mapping[str, int] = MappingProxyType(
    {"manifest.json": 64 << 10, "model.tflite": 16 << 20, **{f"sample/{name}.npy": 2 << 20 for name in SAMPLE_NAMES}}
)
METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
SHIPPED = Path(__file__).with_name("boundary-layer" + SUFFIX)
"""The model that comes with the software. It needs no signature: who could change it could change this line."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package that has been read.

    Attributes:
        sha256: Of the whole file, 64 hexadecimal digits.
        manifest: What it says about itself.
        model: The .tflite file.
        samples: The .npy files of the sample by name: SAMPLE_NAMES.
    """

    sha256: str
    manifest: Manifest
    model: bytes
    samples: Mapping[str, bytes]

    @property
    def label(self) -> str:
        """The model's name, "@", and the first 12 digits of its SHA-256."""
        return label(self.manifest.name, self.sha256)


def label(name: str, sha256: str) -> str:
    """How a model is called in headers, reports and logs."""
    return f"{name}@{sha256[:12]}"


def read_package(content: bytes) -> Package:
    """Reads a package.

    Raises:
        InvalidRequestError: It is none, or not one that may be taken.
    """
    if len(content) > PACKAGE_BYTES_MAX:
        raise InvalidRequestError(f"expected at most {PACKAGE_BYTES_MAX} bytes, but got {len(content)} (model package)")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = _read_members(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InvalidRequestError(f"expected a zip file, but got {error} (model package)") from error
    return Package(
        sha256=hashlib.sha256(content).hexdigest(),
        manifest=parse_manifest(members["manifest.json"]),
        model=members["model.tflite"],
        samples={name: members[f"sample/{name}.npy"] for name in SAMPLE_NAMES},
    )


def write_package(manifest: Manifest, model: bytes, samples: Mapping[str, bytes]) -> bytes:
    """A package as its file; the same bytes for the same content."""
    members = {"manifest.json": write_manifest(manifest), "model.tflite": model}
    members |= {f"sample/{name}.npy": samples[name] for name in SAMPLE_NAMES}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            # with a time of its own each run would make another file
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return file.getvalue()


def describe(path: Path) -> dict[str, Any]:
    """What a package says about itself, for people and for JSON.

    Raises:
        InvalidRequestError: It is not there, or no package.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"expected a model package at {path}, but got {error.strerror or error}") from error
    package = read_package(content)
    manifest = package.manifest
    return {
        "model": package.label,
        "sha256": package.sha256,
        "package_bytes": len(content),
        "model_bytes": len(package.model),
        "gate_count": manifest.grid.gate_count,
        "gate_m": manifest.grid.gate_m,
        "good_at_least": manifest.good_at_least,
        "bad_at_least": manifest.bad_at_least,
        "made_with": dict(manifest.made_with),
        "metrics": dict(manifest.metrics),
    }


def _read_members(archive: zipfile.ZipFile) -> dict[str, bytes]:
    infos = archive.infolist()
    names = sorted(info.filename for info in infos)
    if names != sorted(MEMBER_BYTES_MAX):
        raise InvalidRequestError(
            f"expected the files {', '.join(sorted(MEMBER_BYTES_MAX))}, but got {names[:10]} (model package)"
        )
    members = {}
    for info in infos:
        most = MEMBER_BYTES_MAX[info.filename]
        if info.compress_type not in METHODS or info.flag_bits & 1 or info.file_size > most:
            raise InvalidRequestError(
                f"expected at most {most} bytes, stored or deflated, but got {info.file_size} bytes by method "
                f"{info.compress_type} ({info.filename} in the model package)"
            )
        with archive.open(info) as member:
            # zipfile never gives more than file_size; reading to its end is what checks the CRC
            members[info.filename] = member.read()
        if len(members[info.filename]) != info.file_size:
            raise InvalidRequestError(
                f"expected {info.file_size} bytes, but it is cut ({info.filename} in the package)"
            )
    return members
