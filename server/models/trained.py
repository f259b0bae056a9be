"""Gives weights that were trained at this network their row and their number among the versions of an analysis.

What becomes of the version then (active, shadow, retired) is as for any other. Trains nothing and loads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from sqlalchemy import Connection

from fieldpost.errors import InvalidRequestError
from server.models import catalogue
from server.models.card import ModelKind
from server.models.files import SAFETENSORS, ModelFiles
from server.workers.jobs import ModelKey

FIRST_TRAINED_VERSION = 1001
"""Lower numbers are for versions that come with Fieldpost: an upgrade never meets a number that is taken."""


def register_trained(
    connection: Connection,
    files: ModelFiles,
    analysis: str,
    content: bytes,
    provenance: Mapping[str, object],
    trainer: str,
    now_unix_nanos: int,
) -> ModelKey:
    """Registers trained weights as a version that is ready; the same weights once only.

    Args:
        connection: For writing.
        files: Where the weights are kept; they are on the disk before the row is committed.
        analysis: A built-in one.
        content: The weights, a file in the format safetensors.
        provenance: On what and from what they were trained, and how they scored; kept as JSON.
        trainer: Who trained them.
        now_unix_nanos: When.

    Raises:
        InvalidRequestError: There is nothing in the file, the analysis is not built in, or it loads no trained weights.
    """
    if catalogue.find_family(analysis) is None:
        raise InvalidRequestError(
            f"expected a built-in analysis that loads trained weights, but got {analysis!r}",
            hint="its package needs a function load_trained(version, content)",
        )
    if not content:
        raise InvalidRequestError("expected trained weights, but the file is empty")
    catalogue.lock(connection, analysis)
    sha256 = files.keep(content, SAFETENSORS)
    known = catalogue.find_same(connection, analysis, sha256, "")
    if known is not None:
        return known
    newest = catalogue.newest_version(connection, analysis)
    key = ModelKey(analysis, max(newest + 1, FIRST_TRAINED_VERSION))
    values = {
        "kind": ModelKind.TRAINED,
        "sha256": sha256,
        "content_bytes": len(content),
        "provenance": json.dumps(provenance, indent=1, sort_keys=True),
        "submitter": trainer,
        "submit_unix_nanos": now_unix_nanos,
    }
    catalogue.add_row(connection, key, values, "trained")
    return key
