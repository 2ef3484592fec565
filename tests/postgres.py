"""A real PostgreSQL for tests: from Debian's packages, in a folder of its own, on a socket there.

`Server.start()` skips where it is not installed. Tests that stop it start one of their own.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

_HOMES = Path("/usr/lib/postgresql")


def programs() -> Path | None:
    """The folder with `initdb` and `pg_ctl`; None where there is none."""
    if found := shutil.which("pg_ctl"):
        return Path(found).parent
    found_all = sorted(_HOMES.glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    return found_all[-1].parent if found_all else None


class Server:
    """A server that only this process uses.

    Attributes:
        folder: of its data and its socket.
    """

    def __init__(self) -> None:
        found = programs()
        if found is None:
            missing = "no PostgreSQL here: apt-get install postgresql"
            (pytest.fail if os.environ.get("BLEMISH_CI") else pytest.skip)(missing)
        self._programs = found
        self._user = _unprivileged()
        self.folder = Path(tempfile.mkdtemp(prefix="blemish-pg-", dir="/tmp"))
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self._call("initdb", "-D", self._data, "-U", "blemish", "-A", "trust", "-E", "UTF8", "-N")
        self.start()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Returns when it answers."""
        options = f"-c listen_addresses='' -c fsync=off -k {self.folder} -c shared_buffers=32MB"
        log = self.folder / "log"
        self._call("pg_ctl", "-D", self._data, "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """As when a machine is switched off: connections end at once."""
        self._call("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        """Stop it, where it runs, and delete all it has written."""
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://blemish@/{database}?host={self.folder}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new, empty database, which is deleted at the end."""
        name = f"test_{uuid4().hex}"
        self.run(f'CREATE DATABASE "{name}"')
        try:
            yield self.url(name)
        finally:
            self.run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def run(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(
            host=str(self.folder), user="blemish", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(statement.encode())

    def _call(self, program: str, *arguments: object) -> None:
        who: Mapping[str, Any] = {}
        if self._user is not None:
            who = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        command = [str(self._programs / program), *map(str, arguments)]
        # Its output goes to a file: a server would hold a pipe open as long as it runs.
        with (self.folder / "calls").open("a+b") as said:
            subprocess.run(
                command, check=True, stdout=said, stderr=said, cwd=self.folder, timeout=60, **who
            )


def _unprivileged() -> pwd.struct_passwd | None:
    """Who the server runs as, which may not be root; None = who runs the tests."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("no user for PostgreSQL here, which does not run as root")
