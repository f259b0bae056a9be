"""Parts of the demo: recognising files, and the link that can be cut."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.link import Link
from demo.recorded import find_instrument_model, plan_recorded


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("vaisala/cl31.DAT", "cl31"),
        ("vaisala/cl51.DAT", "cl51"),
        ("vaisala/ct25k.dat", "ct25k"),
        ("vaisala/kauniainen_cl31.dat", "cl31"),
        ("vaisala/uto_cl31_msg.dat", "cl31"),
        ("vaisala/C5061800-first-invalid.DAT", "cl51"),
        ("vaisala/C4122300.DAT", "unrecognised"),
        ("chm15k/raw_chm15k_lidar.nc", "chm15k"),
        ("cl61/live_20210829_224520.nc", "cl61"),
    ],
)
def test_the_instrument_of_a_real_file_is_found_in_its_content(shared_data: Path, name: str, model: str) -> None:
    assert find_instrument_model(shared_data / "ceilometer" / name) == model


def test_files_of_one_series_are_one_instrument(shared_data: Path, tmp_path: Path) -> None:
    (station,) = plan_recorded(shared_data / "ceilometer", tmp_path)
    assert len(list((tmp_path / "cl61-live").iterdir())) == 4
    assert [each.instrument_model for each in station.instruments if each.name == "cl61-live"] == ["cl61"]


def test_a_file_that_only_begins_like_netcdf_is_not_recognised(tmp_path: Path) -> None:
    path = tmp_path / "broken.nc"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert find_instrument_model(path) == "unrecognised"


@pytest.fixture
def echo_port() -> Iterator[int]:
    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(1024):
                self.request.sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_cut_link_breaks_what_passes_and_a_mended_one_lets_it_in_again(echo_port: int) -> None:
    link = Link(echo_port)
    with socket.create_connection(("127.0.0.1", link.port), 5) as connection:
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"
        link.cut()
        connection.settimeout(5)
        with pytest.raises(ConnectionError):
            while True:
                connection.sendall(b"x")
                if not connection.recv(1):
                    raise ConnectionResetError
    link.mend()
    with socket.create_connection(("127.0.0.1", link.port), 5) as connection:
        connection.sendall(b"again")
        assert connection.recv(5) == b"again"
    link.close()
