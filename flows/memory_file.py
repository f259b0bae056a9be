"""Small files in which a flow keeps from run to run what it has seen: whole or not there, and never the truth.

It knows nothing of what is in them.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from server.archive.disk import sync

logger = logging.getLogger(__name__)

FOLDER = "flows"
"""In the server's data folder."""


def read_memory(path: Path) -> Any:
    """What was kept; None where nothing was, or where it cannot be read: then the flow sees everything anew."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("what a flow had kept cannot be read", extra={"file": str(path), "error": str(error)})
        return None


def write_memory(path: Path, content: object) -> None:
    """Replaces it; whatever happens, the old or the new one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{path.name}")
    part.write_text(json.dumps(content))
    sync(part)
    part.replace(path)
    sync(path.parent)
