"""Opens the payload store by its URL: a folder, or an object store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from fieldpost.errors import InvalidRequestError
from server.storage.segments import SegmentReader, SegmentWriter

OBJECT_SCHEMES = ("s3", "gs", "az")


def open_segments(url: str | Path) -> tuple[SegmentWriter, SegmentReader]:
    """Opens the payload store.

    Args:
        url: A folder (also file:///folder), or an object store: s3://bucket/prefix, gs://… or az://…

    Raises:
        InvalidRequestError: It is none of these.
    """
    scheme = urlsplit(url).scheme if isinstance(url, str) and "://" in url else ""
    if scheme in OBJECT_SCHEMES:
        from server.storage.segment_objects import open_objects  # its library is large, and few need it

        return open_objects(str(url))
    if scheme not in ("", "file"):
        raise InvalidRequestError(
            f"expected a folder, s3://, gs:// or az:// for the segments, but got {scheme}://",
            hint="name a folder, or an object store as s3://bucket/prefix",
        )
    from server.storage.segment_folder import FolderReader, FolderWriter

    folder = Path(unquote(urlsplit(str(url)).path)) if scheme else Path(url)
    return FolderWriter(folder), FolderReader(folder)
