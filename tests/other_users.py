"""What tests need that run something as another user."""

from __future__ import annotations

from pathlib import Path


def let_others_in(folder: Path) -> None:
    """Lets every user reach a folder of a test: pytest keeps its folders to who runs it."""
    for each in (folder, *folder.parents):
        each.chmod(0o755)
        if each.name.startswith("pytest-of-"):
            return
