"""Run by test_models_sandbox in a child process: tries forbidden and needed things, and prints how each went.

Argument: a folder that may be written, and "confined" or "free".
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import platform
import resource
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.random  # NumPy itself loads it on first use
from model_support import CLASSIFIER_MANIFEST, make_classifier, make_image

from fieldpost.errors import InvalidObservationError
from server.analyses import AnalysisInput
from server.models.onnx_analysis import load_onnx
from server.models.sandbox import confine
from server.workers.jobs import ModelKey, ModelPackage

FOLDER = Path(sys.argv[1])
LIBC = ctypes.CDLL(None, use_errno=True)
CALLS = {
    "x86_64": {
        "openat2": 437,
        "io_uring_setup": 425,
        "bpf": 321,
        "keyctl": 250,
        "perf_event_open": 298,
        "userfaultfd": 323,
        "process_vm_readv": 310,
        "ptrace": 101,
        "mount": 165,
        "tkill": 200,
    },
    "aarch64": {
        "openat2": 437,
        "io_uring_setup": 425,
        "bpf": 280,
        "keyctl": 219,
        "perf_event_open": 241,
        "userfaultfd": 282,
        "process_vm_readv": 270,
        "ptrace": 117,
        "mount": 40,
        "tkill": 130,
    },
}[platform.machine()]


def call(name: str, *arguments: int) -> Callable[[], object]:
    def probe() -> int:
        result = int(LIBC.syscall(CALLS[name], *map(ctypes.c_long, arguments)))
        if result < 0:
            raise OSError(ctypes.get_errno(), name)
        return result

    return probe


def fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def execute() -> None:
    # what does not exist cannot be executed, but only who may execute at all is told so
    try:
        os.execv(FOLDER / "nothing", ["nothing"])
    except FileNotFoundError:
        return


def unshare() -> None:
    if LIBC.unshare(0) != 0:  # nothing to unshare: the call itself
        raise OSError(ctypes.get_errno(), "unshare")


FORBIDDEN: dict[str, Callable[[], object]] = {
    "open for reading": lambda: os.close(os.open("/etc/hostname", os.O_RDONLY)),
    "open for writing": lambda: os.close(os.open(FOLDER / "written", os.O_WRONLY | os.O_CREAT, 0o600)),
    "list a folder": lambda: list(FOLDER.iterdir()),
    "make a folder": (FOLDER / "made").mkdir,
    "remove a file": (FOLDER / "kept").unlink,
    "rename a file": lambda: (FOLDER / "moved").rename(FOLDER / "moved-away"),
    "link a file": lambda: (FOLDER / "link").symlink_to("/etc/passwd"),
    "change a mode": lambda: (FOLDER / "other").chmod(0o600),
    "make a socket": lambda: socket.socket().close(),
    "make a pair of sockets": lambda: [each.close() for each in socket.socketpair()],
    "make a pipe": os.pipe,
    "make a file in memory": lambda: os.close(os.memfd_create("x")),
    "fork": fork,
    "execute": execute,
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "signal everyone": lambda: os.kill(-1, 0),
    "signal a thread elsewhere": call("tkill", os.getppid(), 0),
    "name an owner for signals": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid()),
    "unshare": unshare,
    "memory that can be executed": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC).close(),
    "set a limit": lambda: resource.setrlimit(resource.RLIMIT_CPU, resource.getrlimit(resource.RLIMIT_CPU)),
    "change priority": lambda: os.nice(0),
    "become a user": lambda: os.setresuid(os.getuid(), os.getuid(), os.getuid()),
}
REFUSED_CALLS = {  # by the filter, before the kernel looks at their arguments, which are nonsense
    "openat2": call("openat2", -1, 0, 0, 0),
    "io_uring": call("io_uring_setup", 0, 0),
    "bpf": call("bpf", 99, 0, 0),
    "keyctl": call("keyctl", 9999, 0, 0),
    "perf events": call("perf_event_open", 0, 0, 0, 0, 0),
    "userfaultfd": call("userfaultfd", 0xFFFF),
    "ptrace": call("ptrace", 9999, 0, 0, 0),
    "mount": call("mount", 0, 0, 0, 0, 0),
    "memory of others": call("process_vm_readv", 1, 0, 0, 0, 0, 0),
}


def threads() -> None:
    done: list[int] = []
    members = [threading.Thread(target=lambda: done.append(1)) for _ in range(4)]
    for each in members:
        each.start()
    for each in members:
        each.join()
    assert len(done) == 4


def arithmetic() -> None:
    a = np.random.default_rng(1).normal(size=(300, 300))
    assert np.allclose(np.linalg.inv(a) @ a, np.eye(300), atol=1e-6)


def models() -> None:
    package = ModelPackage(ModelKey("cloud-type", 1), CLASSIFIER_MANIFEST, make_classifier())
    analysis = load_onnx(package, threads=2, device="cpu")
    whole = analysis.predict([AnalysisInput(image, "sky-camera", 0) for image in IMAGES.values()])
    for kind, answer in zip(IMAGES, whole, strict=True):
        assert not isinstance(answer, Exception) and answer.variables[0].values[0] == 0, f"{kind}: {answer}"
    halves = [image[: len(image) // 2] for image in IMAGES.values()]
    for answer in analysis.predict([AnalysisInput(each, "sky-camera", 0) for each in (*halves, b"", b"nothing")]):
        assert isinstance(answer, InvalidObservationError), answer


IMAGES = {kind: make_image((200, 10, 10), kind=kind) for kind in ("PNG", "JPEG", "BMP", "TIFF")}
for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg"):
    IMAGES[compression] = make_image((200, 10, 10), kind="TIFF", compression=compression)
NEEDED = {"threads": threads, "arithmetic": arithmetic, "models": models}


def attempt(probe: Callable[[], object]) -> str:
    try:
        probe()
        return "done"
    except OSError as error:
        return f"errno {error.errno}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    for name in ("kept", "moved", "other"):
        (FOLDER / name).touch()
    holds = confine(memory_bytes=2**30, cpu_s=60) if sys.argv[2] == "confined" else ()
    results = {name: attempt(probe) for name, probe in {**FORBIDDEN, **REFUSED_CALLS, **NEEDED}.items()}
    results["uid"] = str(os.getuid())
    results["memory"] = attempt(lambda: np.empty(2**31, np.uint8))
    print(json.dumps({"holds": holds, "results": results}))


main()
