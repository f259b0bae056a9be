"""Which system calls a process that computes strangers' models may still make: a small program for the kernel's filter.

A list of what is allowed, so that a call which a later kernel invents is refused without anybody thinking of it. What
is left computes, keeps memory, starts threads, and reads and writes what is open already. This module only writes the
program; server.models.sandbox hands it to the kernel.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

# struct sock_filter and the operations of classic BPF that are needed (linux/bpf_common.h).
LOAD_WORD, JUMP_EQUAL, JUMP_NOT_LESS, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
KILL_PROCESS, REFUSE, ALLOW = 0x8000_0000, 0x0005_0000, 0x7FFF_0000
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16
X32_BIT = 0x4000_0000
CLONE_THREAD = 0x0001_0000
PROT_EXEC = 4
PRCTL_NAMES = (15, 0x5356_4D41)
"""PR_SET_NAME and PR_SET_VMA: threads and memory get names."""
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC; not F_SETOWN, which lets the kernel send signals."""
IOCTL_COMMANDS = (0x5421, 0x541B)
"""FIONBIO and FIONREAD."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Numbers of one kind of machine.

    Attributes:
        audit_id: How the kernel's filter names it (linux/audit.h).
        seccomp: Number of the call that sets a filter.
        calls: Numbers of the others, by name.
    """

    audit_id: int
    seccomp: int
    calls: dict[str, int]


# fmt: off
ARCHITECTURES = {
    "x86_64": Architecture(0xC000_003E, 317, {
        "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
        "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
        "ioctl": 16, "pread64": 17, "readv": 19, "writev": 20, "select": 23, "sched_yield": 24, "mremap": 25,
        "madvise": 28, "dup": 32, "nanosleep": 35, "getpid": 39, "sendto": 44, "recvfrom": 45, "sendmsg": 46,
        "recvmsg": 47, "shutdown": 48, "clone": 56, "exit": 60, "kill": 62, "uname": 63, "fcntl": 72, "getcwd": 79,
        "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102,
        "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "sigaltstack": 131, "sched_getparam": 143,
        "sched_getscheduler": 145, "sched_get_priority_max": 146, "sched_get_priority_min": 147, "prctl": 157,
        "gettid": 186, "time": 201, "futex": 202, "sched_getaffinity": 204, "set_tid_address": 218,
        "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231,
        "tgkill": 234, "newfstatat": 262, "pselect6": 270, "ppoll": 271, "set_robust_list": 273,
        "prlimit64": 302, "getcpu": 309, "getrandom": 318, "membarrier": 324, "statx": 332, "rseq": 334,
        "clone3": 435, "futex_waitv": 449,
    }),
    "aarch64": Architecture(0xC000_00B7, 277, {
        "getcwd": 17, "dup": 23, "fcntl": 25, "ioctl": 29, "close": 57, "lseek": 62, "read": 63, "write": 64,
        "readv": 65, "writev": 66, "pread64": 67, "pselect6": 72, "ppoll": 73, "newfstatat": 79, "fstat": 80,
        "exit": 93, "exit_group": 94, "set_tid_address": 96, "futex": 98, "set_robust_list": 99, "nanosleep": 101,
        "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115, "sched_getscheduler": 120,
        "sched_getparam": 121, "sched_getaffinity": 123, "sched_yield": 124, "sched_get_priority_max": 125,
        "sched_get_priority_min": 126, "restart_syscall": 128, "kill": 129, "tgkill": 131, "sigaltstack": 132,
        "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "times": 153, "uname": 160,
        "getrlimit": 163, "getrusage": 165, "prctl": 167, "getcpu": 168, "gettimeofday": 169, "getpid": 172,
        "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "gettid": 178, "sysinfo": 179,
        "sendto": 206, "recvfrom": 207, "shutdown": 210, "sendmsg": 211, "recvmsg": 212, "brk": 214, "munmap": 215,
        "mremap": 216, "clone": 220, "mmap": 222, "mprotect": 226, "madvise": 233, "prlimit64": 261,
        "getrandom": 278, "membarrier": 283, "statx": 291, "rseq": 293, "clone3": 435, "futex_waitv": 449,
    }),
}
# fmt: on

Instruction = tuple[int, int, int, int]
"""Operation, how far to jump where the comparison holds and where it does not, operand."""


def build_filter(architecture: Architecture, process_id: int) -> bytes:
    """The program: a sequence of struct sock_filter.

    Args:
        architecture: Of this machine; a call in the manner of another one ends the process.
        process_id: Of the process that it is for: the only one that it may send signals to.
    """
    calls = dict(architecture.calls)
    rules = {
        "clone": [_load(0), (JUMP_ANY_BIT, 0, 1, CLONE_THREAD), *_ALLOWED, *_REFUSED],
        # libc falls back on clone, whose flags the filter can see
        "clone3": [(RETURN, 0, 0, REFUSE | errno.ENOSYS)],
        "mmap": [_load(2), (JUMP_ANY_BIT, 0, 1, PROT_EXEC), *_REFUSED, *_ALLOWED],
        "mprotect": [_load(2), (JUMP_ANY_BIT, 0, 1, PROT_EXEC), *_REFUSED, *_ALLOWED],
        "kill": _only_first(process_id),
        "tgkill": _only_first(process_id),
        "prctl": _only_first(*PRCTL_NAMES),
        "fcntl": _only(1, *FCNTL_COMMANDS),
        "ioctl": _only(1, *IOCTL_COMMANDS),
        # no new limits: the pointer to them, in two halves, has to be null
        "prlimit64": [
            _load(2),
            (JUMP_EQUAL, 0, 2, 0),
            (LOAD_WORD, 0, 0, ARGUMENTS_AT + 8 * 2 + 4),
            (JUMP_EQUAL, 1, 0, 0),
            *_REFUSED,
            *_ALLOWED,
        ],
    }
    program: list[Instruction] = [
        (LOAD_WORD, 0, 0, ARCHITECTURE_AT),
        (JUMP_EQUAL, 1, 0, architecture.audit_id),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD_WORD, 0, 0, NUMBER_AT),
        (JUMP_NOT_LESS, 0, 1, X32_BIT),
        (RETURN, 0, 0, KILL_PROCESS),
    ]
    for name, rule in rules.items():
        program += [(JUMP_EQUAL, 0, len(rule), calls.pop(name)), *rule]
    for number in sorted(calls.values()):
        program += [(JUMP_EQUAL, 0, 1, number), *_ALLOWED]
    program += _REFUSED
    return b"".join(struct.pack("=HBBI", *each) for each in program)


_ALLOWED: list[Instruction] = [(RETURN, 0, 0, ALLOW)]
_REFUSED: list[Instruction] = [(RETURN, 0, 0, REFUSE | errno.EPERM)]


def _load(argument: int) -> Instruction:
    """Its lower half; both architectures are little-endian."""
    return (LOAD_WORD, 0, 0, ARGUMENTS_AT + 8 * argument)


def _only(argument: int, *values: int) -> list[Instruction]:
    rule = [_load(argument)]
    for value in values:
        rule += [(JUMP_EQUAL, 0, 1, value), *_ALLOWED]
    return [*rule, *_REFUSED]


def _only_first(*values: int) -> list[Instruction]:
    return _only(0, *values)
