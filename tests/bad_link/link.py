"""A link to a network namespace that can be spoiled by command: for stations far away. Needs root and /dev/net/tun.

The near end is this machine, so that a broker here is reached as over a modem. `tc netem` would do the same, but not
every kernel has it; this one is the same on each. Knows no station and no broker.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from bad_link.fate import Impairment

NAMESPACE_PREFIX = "fieldpost-"  # then the id of the process that made it, and a number
ADDRESSES = ipaddress.ip_network("198.18.0.0/15")  # RFC 2544: for tests of networks; in use nowhere
LINK_PREFIX_BITS = 30
_numbers = itertools.count()


def why_impossible() -> str:
    """Why no link can be made here, for a person; "" where one can."""
    if os.geteuid() != 0:
        return "a network namespace needs root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    return "" if _ip_program() else "ip(8) of iproute2 is not installed"


class BadLink:
    """A link that is good at first.

    Args:
        namespace: The network namespace at its far end.
        forwarder: The process that carries its packets.
        address: Of this machine's end.
    """

    def __init__(self, namespace: str, forwarder: subprocess.Popen[str], address: str) -> None:
        self.namespace = namespace
        self.address = address
        self._forwarder = forwarder

    def far_command(self, *command: str) -> list[str]:
        """A command line that runs another one at the far end, as the same process."""
        return [_ip_program(), "netns", "exec", self.namespace, *command]

    def spoil(self, **impairment: float) -> dict[str, int]:
        """From now on the link is as bad as this, in both directions; without arguments it is good.

        Args:
            impairment: What an Impairment is made of.

        Returns:
            What became of packets so far; see the forwarder's Counts.
        """
        assert self._forwarder.stdin is not None and self._forwarder.stdout is not None
        self._forwarder.stdin.write(json.dumps(asdict(Impairment(**impairment))) + "\n")  # type: ignore[arg-type]
        self._forwarder.stdin.flush()
        answer = self._forwarder.stdout.readline()
        assert answer, "the forwarder has ended"
        return dict(json.loads(answer))


@contextmanager
def bad_link(seed: int = 1) -> Iterator[BadLink]:
    """Makes a link and the namespace behind it, and takes both away again.

    Args:
        seed: Of what happens to packets.
    """
    remove_leftovers()
    number = next(_numbers)
    namespace = f"{NAMESPACE_PREFIX}{os.getpid()}-{number}"
    devices = [f"fp{os.getpid()}-{number}{end}" for end in "ab"]
    near, far = _addresses(os.getpid() + number)
    command = [sys.executable, "-m", "bad_link.forwarder", *devices, str(seed)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    pipe = subprocess.PIPE
    _ip("netns", "add", namespace)
    try:
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as forwarder:
            try:
                assert forwarder.stdout is not None
                assert forwarder.stdout.readline() == "ready\n", "the forwarder does not start"
                _ip("link", "set", devices[1], "netns", namespace)
                _ip("address", "add", near, "peer", far, "dev", devices[0])
                _ip("link", "set", devices[0], "up")
                _ip("-n", namespace, "link", "set", "lo", "up")
                _ip("-n", namespace, "address", "add", far, "peer", near, "dev", devices[1])
                _ip("-n", namespace, "link", "set", devices[1], "up")
                yield BadLink(namespace, forwarder, near)
            finally:
                forwarder.kill()
    finally:
        _remove(namespace)


def remove_leftovers() -> None:
    """Ends and removes what earlier runs left that were killed themselves. Their devices ended with them."""
    for line in _ip("netns", "list").splitlines():
        namespace = line.split()[0]
        maker = namespace.removeprefix(NAMESPACE_PREFIX).partition("-")[0]
        if namespace.startswith(NAMESPACE_PREFIX) and not Path(f"/proc/{maker}").exists():
            _remove(namespace)


def _remove(namespace: str) -> None:
    """Whatever still runs in a namespace of ours would keep it alive."""
    for process_id in _ip("netns", "pids", namespace).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process_id), signal.SIGKILL)
    _ip("netns", "delete", namespace)


def _addresses(number: int) -> tuple[str, str]:
    """Both ends of a link; links of two test runs at the same time do not meet."""
    size = 2 ** (32 - LINK_PREFIX_BITS)
    first = ADDRESSES[size * (number % (ADDRESSES.num_addresses // size))]
    return str(first + 1), str(first + 2)


def _ip_program() -> str:
    return shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or ""


def _ip(*arguments: str) -> str:
    done = subprocess.run([_ip_program(), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout
