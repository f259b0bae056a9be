"""The library of faults: compiled where the tests need it, and armed from inside a process that has it preloaded."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
TESTS_FOLDER = Path(__file__).resolve().parent.parent


def compiler() -> str | None:
    """The C compiler; None where there is none."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build_library(folder: Path) -> Path:
    """Compiles faults.c into the folder."""
    library = folder / "faults.so"
    command = [str(compiler()), "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True)
    return library


def environment(library: Path, **faults: object) -> dict[str, str]:
    """The environment of a process that meets faults: at=5 is FIELDPOST_FAULT_AT=5."""
    settings = {f"FIELDPOST_FAULT_{name.upper()}": str(value) for name, value in faults.items()}
    paths = os.pathsep.join([str(TESTS_FOLDER), str(TESTS_FOLDER.parent)])
    return os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": paths} | settings


def fast_folder() -> Path:
    """Where small files cost no disk: in memory, where the system has such a place."""
    return Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())


class Faults:
    """The library as it is loaded into this very process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        if not hasattr(self._library, "faults_arm"):
            sys.exit("expected faults.so in LD_PRELOAD, but this process has none")

    def arm(self, folder: Path, kind: str, at: int, count: int) -> None:
        """Begins to count anew below the folder; from the operation `at` on, `count` of them meet the fault."""
        self._library.faults_arm(str(folder).encode(), kind.encode(), ctypes.c_long(at), ctypes.c_long(count))

    def disarm(self) -> None:
        """From here on the disk is well."""
        self.arm(Path("/nowhere"), "", 0, 0)

    def log_to(self, path: Path, *, with_contents: bool = False) -> None:
        """Writes down each operation from here on."""
        self._library.faults_log_to(str(path).encode(), int(with_contents))

    def note(self, text: str) -> None:
        """Puts a line between the operations in the log."""
        self._library.faults_note(text.encode())
