"""What all tests share: the real instrument files, a free port, a real Mosquitto, a real PostgreSQL."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.postgres import Postgres, find_postgres
from demo.processes import find_mosquitto, free_port, is_listening

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
MOSQUITTO = find_mosquitto()


def skip_or_fail(reason: str) -> None:
    """Skips on a developer's machine; fails where CI=true, since there nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes: those of one file in one, and in one all that need the Prefect server."""
    for item in items:
        needs_prefect = "prefect_url" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("prefect" if needs_prefect else item.path.name))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real instrument files, which stands beside the checkout."""
    if not SHARED_DATA.is_dir():
        skip_or_fail("the real instrument files are not at ../shared/data")
    return SHARED_DATA


@pytest.fixture(name="free_port")
def a_free_port() -> int:
    """A TCP port on the loopback that nobody listened on a moment ago."""
    return free_port()


def wait_for_port(port: int, process: subprocess.Popen[bytes], timeout_s: float = 10) -> None:
    """Returns once something listens on the port; fails where the process ends before."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"{process.args!r} ended with status {process.returncode}")
        if is_listening(port):
            return
    pytest.fail(f"nothing listens on port {port} after {timeout_s} s")


@pytest.fixture
def start_mosquitto(tmp_path: Path) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    """Starts real Mosquitto brokers on ports of the loopback, without persistence; ends them after the test."""
    if MOSQUITTO is None:
        skip_or_fail("mosquitto is not installed (make mosquitto)")
    running: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> subprocess.Popen[bytes]:
        config = tmp_path / f"mosquitto-{port}.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 100000\n"
        )
        broker = subprocess.Popen(
            [str(MOSQUITTO), "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        running.append(broker)
        wait_for_port(port, broker)
        return broker

    yield start
    for broker in running:
        broker.kill()
        broker.wait()


@pytest.fixture
def mosquitto_port(start_mosquitto: Callable[[int], subprocess.Popen[bytes]], free_port: int) -> int:
    """The port of one running Mosquitto."""
    start_mosquitto(free_port)
    return free_port


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL, durable as it is when installed, for all tests together; each makes databases of its own."""
    if find_postgres() is None:
        skip_or_fail("PostgreSQL is not installed (make postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="fieldpost-"))  # not tmp_path: too long for a socket, and closed to others
    folder.chmod(0o755)
    server = Postgres(folder / "pg")
    server.start()
    yield server
    server.stop(mode="immediate")
    shutil.rmtree(folder)


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty database on a real PostgreSQL."""
    name = f"test_{secrets.token_hex(6)}"
    yield postgres.create_database(name)
    postgres.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database: the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'fieldpost.db'}"


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one real Prefect server for all tests: it takes longer to start than most of them."""
    from prefect_support import prefect_server  # seconds of imports, which most tests do without

    with prefect_server(tmp_path_factory.mktemp("prefect")) as url:
        yield url


@pytest.fixture(scope="session")
def prefect_limits(prefect_url: str) -> None:
    """The global concurrency limits that flows take, made once at the tests' Prefect server."""
    from prefect_support import make_limits

    make_limits(prefect_url)


@pytest.fixture
def prefect_api(prefect_url: str, prefect_limits: None) -> Iterator[str]:
    """The same, and flows of the test belong to it."""
    from prefect_support import use_prefect

    with use_prefect(prefect_url) as url:
        yield url
