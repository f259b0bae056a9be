"""Disks for tests: small ones that fill up, and that can be made read-only. Mounting needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of its own, in memory, mounted at a folder."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "fieldpost-test", str(folder)], capture_output=True
    )
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def card(folder: Path, image: Path, size_bytes: int = 8 << 20) -> Iterator[Path]:
    """An ext4 file system as on an SD card, mounted at a folder; its image is made where it does not exist."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("a file system of its own needs root and mkfs.ext4")
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(size_bytes)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-o", "loop,errors=remount-ro", str(image), str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no loop device can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def break_card(folder: Path) -> None:
    """Makes the kernel find an error on the card, upon which it turns it read-only, as it does in the field."""
    source = subprocess.run(["findmnt", "-no", "SOURCE", str(folder)], check=True, capture_output=True, text=True)
    trigger = Path("/sys/fs/ext4") / Path(source.stdout.strip()).name / "trigger_fs_error"
    if not trigger.exists():
        pytest.skip("this kernel has no way to make an ext4 error")
    trigger.write_text("1")
