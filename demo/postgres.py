"""A PostgreSQL server in a folder of its own, reached over a Unix socket: for tests and benchmarks, nothing else.

It runs with the settings that PostgreSQL has when it is installed: every commit is on the disk before it is reported.
Knows nothing of what is kept in its databases.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psycopg
from psycopg import sql

from fieldpost.errors import BrokenStateError

SUPERUSER = "fieldpost"
SOCKET_PATH_MAX = 107
"""The kernel takes no longer path of a Unix socket."""


class Postgres:
    """One server. PostgreSQL refuses to run as root; where we are root, it runs as the user postgres, or nobody.

    Args:
        folder: Of the data, the socket and the log; made where it is missing. Everybody must be able to enter the
            folders above it, and its path must be short.
    """

    def __init__(self, folder: Path) -> None:
        programs = find_postgres()
        if programs is None:
            raise BrokenStateError("PostgreSQL is not installed", hint="make postgresql")
        if len(str(folder / ".s.PGSQL.5432")) > SOCKET_PATH_MAX:
            raise BrokenStateError(f"expected a folder with a short path, but got {folder}")
        self.folder = folder
        self._programs = programs
        self._user = _ordinary_user()
        folder.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            os.chown(folder, self._user, -1)
        if not (folder / "data").exists():
            options = ["--username", SUPERUSER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C"]
            self._run("initdb", ["--pgdata", "data", *options])

    def start(self) -> None:
        """Returns once it takes connections."""
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}'"
        self._run("pg_ctl", ["start", "--wait", "--pgdata", "data", "--log", "log", "--options", options])

    def stop(self, *, mode: str = "fast") -> None:
        """Ends it: "fast" in order, "immediate" as a power cut would, and the next start has to recover."""
        self._run("pg_ctl", ["stop", "--wait", "--pgdata", "data", "--mode", mode])

    @property
    def process_id(self) -> int:
        """Of the server, whose children do the work."""
        return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    def url(self, database: str) -> str:
        """What SQLAlchemy calls the database."""
        return f"postgresql+psycopg://{SUPERUSER}@/{database}?host={self.folder}"

    def create_database(self, name: str, *, tablespace: str = "pg_default") -> str:
        """Makes an empty database; returns its URL."""
        statement = sql.SQL("CREATE DATABASE {} TABLESPACE {}")
        with self.connect() as connection:
            connection.execute(statement.format(sql.Identifier(name), sql.Identifier(tablespace)))
        return self.url(name)

    def create_tablespace(self, name: str, folder: Path) -> None:
        """Makes another place for databases: a new folder, perhaps on another disk."""
        folder.mkdir()
        if self._user is not None:
            os.chown(folder, self._user, -1)
        statement = sql.SQL("CREATE TABLESPACE {} LOCATION {}")
        with self.connect() as connection:
            connection.execute(statement.format(sql.Identifier(name), str(folder)))

    def drop_database(self, name: str) -> None:
        """Removes a database, whoever still uses it."""
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """A connection of the superuser, in which every statement is a transaction."""
        return psycopg.connect(host=str(self.folder), user=SUPERUSER, dbname=database, autocommit=True)

    def _run(self, program: str, options: Sequence[str]) -> None:
        with (self.folder / "output").open("wb") as output:  # no pipe: the server inherits it, and keeps it open
            done = subprocess.run(
                [str(self._programs / program), *options],
                check=False,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self._user,
                group=None if self._user is None else pwd.getpwuid(self._user).pw_gid,
                extra_groups=None if self._user is None else [],
            )
        if done.returncode != 0:
            words = (self.folder / "output").read_text(errors="replace").strip()
            raise BrokenStateError(f"{program} ended with status {done.returncode}: {words}")


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs, which Debian puts where nobody looks; None where it is not installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    installed = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), *Path("/usr").glob("pgsql-*/bin/initdb")]
    return max(installed).parent if installed else None


def _ordinary_user() -> int | None:
    if os.geteuid() != 0:
        return None
    known = {each.pw_name: each.pw_uid for each in pwd.getpwall()}
    return known.get("postgres", known["nobody"])
