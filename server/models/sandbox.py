"""Confines the process that calls it, for good: what computes a stranger's model can compute, and nothing else.

It has to have imported, and used once, all that it needs: afterwards no file can be opened, not even for reading. What
is open already, its pipes, stays usable. It knows nothing of models.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from contextlib import suppress

from fieldpost.errors import BrokenStateError
from server.models.syscall_filter import ARCHITECTURES, build_filter

PR_SET_PDEATHSIG, PR_GET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 2, 4, 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1
CLONE_NEWNET = 0x4000_0000
NOBODY = 65534
OPEN_FILES_MAX = 64


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def confine(*, memory_bytes: int = 0, cpu_s: int = 0) -> tuple[str, ...]:
    """Confines this process, with all its threads.

    Args:
        memory_bytes: Data that it may have at most; 0 leaves the limit as it is.
        cpu_s: CPU time after which the kernel ends it; 0 for no limit.

    Returns:
        What holds, in words. The filter of system calls always does; a network namespace of its own and another user
        need a server that runs as root.

    Raises:
        BrokenStateError: The kernel cannot filter system calls: nothing of a stranger may run here.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    holds = ["no core dumps", "no file growth"]
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE):
        resource.setrlimit(limit, (0, 0))
    with suppress(ValueError):  # the limit is lower already
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES_MAX, OPEN_FILES_MAX))
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    if resource.getrlimit(resource.RLIMIT_DATA)[1] != resource.RLIM_INFINITY:
        holds.append("memory limit")
    if cpu_s:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))  # SIGXCPU first, which says why
        holds.append("CPU limit")
    if libc.unshare(CLONE_NEWNET) == 0:
        holds.append("network namespace")
    if os.geteuid() == 0:
        _become_nobody(libc)
        holds.append("unprivileged user")
    _prctl(libc, PR_SET_DUMPABLE, 0)
    _prctl(libc, PR_SET_NO_NEW_PRIVS, 1)
    _filter_calls(libc)
    return (*holds, "no new privileges", "system call filter")


def _become_nobody(libc: ctypes.CDLL) -> None:
    """Gives up root. The kernel then forgets the signal for the parent's death; it is set again."""
    death_signal = ctypes.c_int(0)
    libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(death_signal), 0, 0, 0)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    _prctl(libc, PR_SET_PDEATHSIG, death_signal.value)


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise BrokenStateError(f"expected the kernel to do prctl {option}, but got: {os.strerror(ctypes.get_errno())}")


def _filter_calls(libc: ctypes.CDLL) -> None:
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise BrokenStateError(
            f"expected a machine of {' or '.join(ARCHITECTURES)}, but got {platform.machine()}",
            hint="users' models cannot be confined here; run the server on another machine",
        )
    code = build_filter(architecture, os.getpid())
    program = _Program(len(code) // 8, code)
    call = (ctypes.c_long(architecture.seccomp), SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC)
    if libc.syscall(*call, ctypes.byref(program)) != 0:
        raise BrokenStateError(
            f"expected a kernel that filters system calls, but got: {os.strerror(ctypes.get_errno())}",
            hint="users' models cannot be confined here; the kernel needs CONFIG_SECCOMP_FILTER, and a container "
            "must allow seccomp",
        )
