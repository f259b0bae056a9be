"""Tries the network side of an instrument as its source would: connects, or listens. Only while no agent runs.

Takes no byte of what the instrument sends, and judges nothing.
"""

from __future__ import annotations

import contextlib
import errno
import socket

from edge_agent.source_settings import StreamSettings, TcpClientSettings, TcpServerSettings, UdpSettings

CONNECT_TIMEOUT_S = 5.0


def port_problem(instrument: StreamSettings) -> str:
    """Why the source could not begin, in plain words; empty where it could, or where it has no network."""
    match instrument:
        case TcpClientSettings(host=host, port=port):
            return _connect_problem(host, port)
        case TcpServerSettings(address=address, port=port):
            return _listen_problem(address, port, socket.SOCK_STREAM)
        case UdpSettings(address=address, port=port):
            return _listen_problem(address, port, socket.SOCK_DGRAM)
    return ""


def _connect_problem(host: str, port: int) -> str:
    try:
        with contextlib.closing(socket.create_connection((host, port), CONNECT_TIMEOUT_S)):
            return ""
    except socket.gaierror:
        return f"there is no host {host}"
    except ConnectionRefusedError:
        return f"{host} is there, but refuses connections on port {port}"
    except TimeoutError:
        return f"{host} does not answer on port {port}"
    except OSError as error:
        return f"{host} cannot be reached on port {port}: {error.strerror or error}"


def _listen_problem(address: str, port: int, kind: socket.SocketKind) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, kind) as listener:
            if kind == socket.SOCK_STREAM:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the source does
            listener.bind((address, port))
            if kind == socket.SOCK_STREAM:
                listener.listen(1)
    except socket.gaierror:
        return f"{address} is no address"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port {port} is in use by another program"
        if error.errno == errno.EADDRNOTAVAIL:
            return f"{address} is no address of this computer"
        if error.errno == errno.EACCES:
            return ""  # of a user other than the service's; that such a port is for root only is said elsewhere
        return f"cannot listen on port {port} of {address}: {error.strerror or error}"
    return ""
