"""The BagIt format, RFC 8493: a folder `data`, and text files beside it that say what must be in it.

Written here from hashes that were computed while the files were written, and read back with the library of the
Library of Congress, which computes its own: the two do not share an error. Knows no observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import bagit

from fieldpost.errors import BrokenStateError
from flows.bags.durable import FileDigest, digest_file, write_file

PAYLOAD_FOLDER = "data"
MANIFEST = "manifest-sha256.txt"
_DECLARATION = "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"


def write_tag_files(folder: Path, payload: Mapping[str, FileDigest], info: Mapping[str, str]) -> str:
    """Turns a folder that has its payload into a bag.

    Args:
        folder: The bag; its payload lies in `data`.
        payload: What was written there, by file name.
        info: Lines for bag-info.txt; Payload-Oxum is added.

    Returns:
        The SHA-256 of the manifest, in hexadecimal digits.
    """
    byte_count = sum(digest.byte_count for digest in payload.values())
    lines = {**info, "Payload-Oxum": f"{byte_count}.{len(payload)}"}
    texts = {
        "bagit.txt": _DECLARATION,
        "bag-info.txt": "".join(f"{label}: {value}\n" for label, value in lines.items()),
        MANIFEST: _manifest({f"{PAYLOAD_FOLDER}/{name}": digest for name, digest in payload.items()}),
    }
    tags = {name: write_file(folder / name, text.encode()) for name, text in texts.items()}
    write_file(folder / "tagmanifest-sha256.txt", _manifest(tags).encode())
    return tags[MANIFEST].sha256


def _manifest(digests: Mapping[str, FileDigest]) -> str:
    return "".join(f"{digest.sha256}  {name}\n" for name, digest in sorted(digests.items()))


def validate(folder: Path) -> None:
    """Reads every file of a bag and compares it with the manifests.

    Raises:
        BrokenStateError: The bag is damaged or incomplete.
    """
    try:
        bagit.Bag(str(folder)).validate()
    except bagit.BagError as error:
        raise BrokenStateError(f"expected a valid bag in {folder}, but {error}", hint=_HINT) from error


def read_manifest_sha256(folder: Path) -> str:
    """The SHA-256 of a bag's manifest; empty where there is no manifest."""
    try:
        return digest_file(folder / MANIFEST).sha256
    except FileNotFoundError:
        return ""


def read_payload_file(folder: Path, name: str) -> bytes:
    """A small payload file of a bag, checked against the manifest.

    Raises:
        BrokenStateError: It is not there, or not what the manifest says.
    """
    path = folder / PAYLOAD_FOLDER / name
    expected = f"{{}}  {PAYLOAD_FOLDER}/{name}"
    try:
        lines = (folder / MANIFEST).read_text().splitlines()
        digest = digest_file(path)
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise BrokenStateError(f"expected {error.filename} in a bag, but it is not there", hint=_HINT) from error
    if expected.format(digest.sha256) not in lines:
        raise BrokenStateError(f"expected {path} as {MANIFEST} says, but its SHA-256 is {digest.sha256}", hint=_HINT)
    return content


_HINT = "the storage is at fault, or somebody edited the bag; the next run of the archive flow makes a new version"
