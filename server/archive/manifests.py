"""What a bag promises of its files: both its manifests, compared with what was recorded of the bag. Knows no flow.

RFC 8493: manifest-sha256.txt names the payload, tagmanifest-sha256.txt the other files, itself excepted.
"""

from __future__ import annotations

import hashlib

from fieldpost.errors import BrokenStateError
from server.archive.shelf import MANIFEST, Shelf, read_file

TAG_MANIFEST = "tagmanifest-sha256.txt"
_HINT = "the flow scrub repairs a bag from its copy, and says what else there is to do"


def read_promises(shelf: Shelf, path: str, manifest_sha256: str) -> dict[str, str]:
    """The SHA-256 of each file that belongs into a bag, in hexadecimal digits; of the tag manifest, as it is.

    Args:
        shelf: Where the bag lies.
        path: The bag.
        manifest_sha256: Of its manifest, as it was recorded when the bag had been verified.

    Raises:
        BrokenStateError: A manifest is not there, or not what was recorded.
        TryAgainError: The storage does not answer.
    """
    manifest = read_file(shelf, path, MANIFEST)
    got = hashlib.sha256(manifest).hexdigest()
    if got != manifest_sha256:
        raise BrokenStateError(
            f"expected {MANIFEST} with SHA-256 {manifest_sha256}, but it has {got} ({path} in {shelf.url})", hint=_HINT
        )
    tags = read_file(shelf, path, TAG_MANIFEST)
    promised = parse_manifest(tags, f"{path}/{TAG_MANIFEST}")
    if promised.get(MANIFEST) != manifest_sha256:
        raise BrokenStateError(
            f"expected {TAG_MANIFEST} to name {MANIFEST} with SHA-256 {manifest_sha256}, but it has "
            f"{promised.get(MANIFEST)} ({path} in {shelf.url})",
            hint=_HINT,
        )
    promised |= parse_manifest(manifest, f"{path}/{MANIFEST}")
    return {**promised, TAG_MANIFEST: hashlib.sha256(tags).hexdigest()}


def parse_manifest(content: bytes, where: str) -> dict[str, str]:
    """SHA-256 by file name.

    Raises:
        BrokenStateError: It is no manifest.
    """
    try:
        *lines, rest = content.decode().split("\n")  # and nowhere else: a flipped bit can make other ends of lines
        if rest:
            raise ValueError
        return {name: sha256 for sha256, name in (line.split("  ", 1) for line in lines)}
    except ValueError as error:
        raise BrokenStateError(f"expected lines of hash and name in {where}, but got others", hint=_HINT) from error
