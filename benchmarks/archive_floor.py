"""What archiving and restoring a day cannot cost much less than: the real programs cp, sha256sum, tar and zstd.

Two of them. With a file for each observation, a person does by hand what a bag promises: every observation has its own
name and hash, packed into one compressed tar, and comes back as a file. With one file for the whole day there is one
hash and no name: less is done, and more quickly. What is written is on the disk at the end. Knows nothing of ours.
"""

from __future__ import annotations

import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LEVEL = 10
_PACK = f"import sys, zstandard; zstandard.ZstdCompressor({LEVEL}, write_checksum=True)"
_UNPACK = "import sys, zstandard; zstandard.ZstdDecompressor()"
_STREAMS = ".copy_stream(sys.stdin.buffer, sys.stdout.buffer)"


@dataclass(frozen=True, slots=True)
class Spent:
    """What something took.

    Attributes:
        wall_s: By the clock.
        cpu_s: User and system time of all threads and processes.
    """

    wall_s: float
    cpu_s: float


def zstd_program() -> str:
    """Which zstd the floor runs: Debian's, or a Python process with the library that we use too."""
    return "zstd" if shutil.which("zstd") else "python -m zstandard's library"


def _zstd(program: str, script: str) -> str:
    if shutil.which("zstd"):
        return program
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(script + _STREAMS)}"


PACK, UNPACK = _zstd(f"zstd -q -{LEVEL} -c", _PACK), _zstd("zstd -q -d -c", _UNPACK)


def archive_files(source: Path, folder: Path) -> None:
    """Copies the files, hashes each, packs all into one tar.

    Args:
        source: A folder of files.
        folder: Where to; new.
    """
    _run(
        f"cp -r {source} {folder}/copy; cd {folder}/copy; find . -type f | LC_ALL=C sort | xargs sha256sum > ../sums; "
        f"tar -cf - . | {PACK} > ../day.tar.zst; cd ..; sync sums day.tar.zst"
    )


def restore_files(archived: Path, folder: Path) -> None:
    """Unpacks the tar, hashes each file, copies them to where they are wanted."""
    _run(
        f"mkdir {folder}/unpacked; cd {folder}/unpacked; {UNPACK} < {archived}/day.tar.zst | tar -xf -; "
        f"sha256sum -c --quiet {archived}/sums; cp -r . ../wanted; sync -f ../wanted"
    )


def archive_one_file(source: Path, folder: Path) -> None:
    """Copies one file, hashes it, packs it."""
    _run(f"cp {source} {folder}/day; cd {folder}; sha256sum day > sums; {PACK} < day > day.zst; sync sums day.zst")


def restore_one_file(archived: Path, folder: Path) -> None:
    """Unpacks one file, hashes it, copies it to where it is wanted."""
    _run(
        f"cd {folder}; {UNPACK} < {archived}/day.zst > day; sha256sum -c --quiet {archived}/sums; "
        "cp day wanted; sync wanted"
    )


def _run(commands: str) -> None:
    subprocess.run(["sh", "-ec", commands], check=True)


def spend(operation: Callable[[], object]) -> Spent:
    """Runs it, and tells what it took in this process and in those that it started."""
    begin_s, begin_cpu_s = time.perf_counter(), _cpu_s()
    operation()
    return Spent(time.perf_counter() - begin_s, _cpu_s() - begin_cpu_s)


def _cpu_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)
