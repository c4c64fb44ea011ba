"""Real servers on 127.0.0.1, started and stopped by the test run itself, as root or not."""

from __future__ import annotations

import ctypes
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>

PATIENCE = 60  # seconds; for a machine that is busy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PostgresServer:
    """One cluster in a folder of its own; it may be killed and started again."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.port = free_port()
        self._data = folder / "data"
        self._log = folder / "log"
        self._binaries = binaries
        self._process: subprocess.Popen[bytes] | None = None
        # PostgreSQL refuses to run as root; Debian's package brings a user for it.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            folder.parent.chmod(0o755)
            shutil.chown(folder, self._user)
        self._run(
            "initdb", "-D", self._data, "-U", "bot", "--auth=trust", "-E", "UTF8", "--locale=C"
        )

    @property
    def url(self) -> str:
        return f"postgresql://bot@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start, and wait until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self._data,
            "max_connections": 60,
            "shared_buffers": "32MB",
        }
        options = [f"-c{name}={value}" for name, value in settings.items()]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, *options],
                stdout=log,
                stderr=log,
                user=self._user,
                cwd="/",
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        until = time.monotonic() + PATIENCE
        ready = [self._binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"PostgreSQL did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to the server and all its children at once, as a power cut would stop them.

        Each backend is a session of its own, so there is no group to kill; stopped, the server
        starts no more of them meanwhile.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        children = _children_of(self._process.pid)
        for process in (*children, self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait(PATIENCE)
        self._process = None
        until = time.monotonic() + PATIENCE
        while any(map(_is_alive, children)) and time.monotonic() < until:
            time.sleep(0.005)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # "fast": connections are closed
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [self._binaries / program, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            user=self._user,
            cwd="/",
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed as {self._user or getpass.getuser()}: {done}")


def _end_with_parent() -> None:
    """Have the kernel stop the server when the test run is killed: nobody else would."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _children_of(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
    return found


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def postgres_binaries() -> Path | None:
    """Return the newest PostgreSQL server's folder of programs, None where there is none."""
    on_path = shutil.which("initdb")
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[-3])
    )
    found = debian[-1] if debian else (Path(on_path) if on_path else None)
    return found.parent if found else None


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Run a server of one's own. `postgres_binaries` has to be there."""
    binaries = postgres_binaries()
    assert binaries is not None
    with tempfile.TemporaryDirectory(prefix="statestore-pg-") as folder:
        Path(folder).chmod(0o755)
        cluster = Path(folder) / "cluster"
        cluster.mkdir()
        server = PostgresServer(cluster, binaries)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def pgbouncer_program() -> str | None:
    """Return the path of pgbouncer, None where it is not installed."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin")


@contextmanager
def running_pgbouncer(server: PostgresServer, mode: str) -> Iterator[str]:
    """Run a pooler in front of a server; give the URL of the database behind it."""
    program = pgbouncer_program()
    assert program is not None
    port = free_port()
    # It refuses to run as root, too.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="statestore-pool-") as folder:
        Path(folder).chmod(0o755)
        config = Path(folder) / "pgbouncer.ini"
        config.write_text(
            f"[databases]\npostgres = host=127.0.0.1 port={server.port} user=bot\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {mode}\n"
        )
        config.chmod(0o644)
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, "-q", config], stdout=log, stderr=log, user=user, cwd="/"
            )
        try:
            until = time.monotonic() + PATIENCE
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > until:
                    said = (Path(folder) / "log").read_text()
                    raise RuntimeError(f"pgbouncer did not start:\n{said[-2000:]}")
                time.sleep(0.05)
            yield f"postgresql://bot@127.0.0.1:{port}/postgres"
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class InfluxServer:
    """An InfluxDB 1.x in a folder of its own; it may be killed and started again."""

    database = "quant-data"

    def __init__(self, folder: Path, program: str, *, users: bool = False) -> None:
        self.port = free_port()
        self._program = program
        self._log = folder / "log"
        self._config = folder / "influxdb.conf"
        self._process: subprocess.Popen[bytes] | None = None
        self._config.write_text(
            f"""
            reporting-disabled = true
            bind-address = "127.0.0.1:{free_port()}"
            [meta]
              dir = "{folder}/meta"
            [data]
              dir = "{folder}/data"
              wal-dir = "{folder}/wal"
            [monitor]
              store-enabled = false
            [ifql]
              enabled = false
            [http]
              bind-address = "127.0.0.1:{self.port}"
              auth-enabled = {"true" if users else "false"}
            """
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-config", self._config], stdout=log, stderr=log
            )
        until = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"InfluxDB did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def query(self, text: str, *, user: str = "", password: str = "") -> list[dict[str, Any]]:
        """Run InfluxQL as a dashboard would; return a dict for each row."""
        who = urllib.parse.urlencode({"u": user, "p": password} if user else {})
        asked = {"db": self.database, "epoch": "ns", "q": text}
        data = urllib.parse.urlencode(asked).encode()
        with urllib.request.urlopen(f"{self.url}/query?{who}", data, timeout=PATIENCE) as answer:
            result = json.load(answer)["results"][0]
        assert "error" not in result, result
        return [
            dict(zip(series["columns"], values, strict=True)) | series.get("tags", {})
            for series in result.get("series", [])
            for values in series["values"]
        ]

    def kill(self) -> None:
        """SIGKILL, as a power cut would stop it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self.kill()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ping", timeout=1):
                return True
        except OSError:
            return False


def influx_program() -> str | None:
    """Return the path of influxd, None where it is not installed."""
    return shutil.which("influxd", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin")


@contextmanager
def running_influx(*, users: bool = False) -> Iterator[InfluxServer]:
    """Run a server of one's own with an empty database; `influx_program` has to be there.

    Args:
        users: whether it asks for a user and a password; there is none yet, nor a database.
    """
    program = influx_program()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="statestore-influx-") as folder:
        server = InfluxServer(Path(folder), program, users=users)
        server.start()
        try:
            if not users:
                server.query(f'CREATE DATABASE "{server.database}"')
            yield server
        finally:
            server.stop()
