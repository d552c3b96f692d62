"""Private servers for tests and benchmarks: PostgreSQL and an S3 server, on loopback, gone when the block ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POSTGRES_VARIABLE = "CILSEG_TEST_POSTGRES"
"""URL of a PostgreSQL database to use instead of a private server; its login must be able to make schemas."""
_PASSWORD = "loopback only"
_WAIT_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yield ``postgresql://...`` of an empty database on a server reached over TCP.

    Raises:
        FileNotFoundError: PostgreSQL is not installed (Debian: ``apt-get install postgresql``).
    """
    given = os.environ.get(POSTGRES_VARIABLE)
    if given:
        yield given
        return
    binaries = _postgres_binaries()
    folder = Path(tempfile.mkdtemp(prefix="cilseg-postgres-"))
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    try:
        if user is not None:
            shutil.chown(folder, user, user)
        password = folder / "password"
        password.write_text(_PASSWORD)
        password.chmod(0o644)
        _as(user, binaries / "initdb", "-D", folder / "data", "-U", "postgres", "--pwfile", password,
            "--auth-host=scram-sha-256", "--auth-local=scram-sha-256", "-E", "UTF8", "--locale=C")  # fmt: skip
        port = free_port()
        options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={folder} -c max_connections=200"
        _as(user, binaries / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log", "-o", options, "start")
        try:
            yield f"postgresql://postgres:{_PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}/postgres"
        finally:
            _as(user, binaries / "pg_ctl", "-D", folder / "data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def s3_server(bucket: str = "models") -> Iterator[dict[str, str]]:
    """Yield the environment variables with which S3 clients find a server that holds ``bucket``."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                request = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
                with urllib.request.urlopen(request, timeout=5):
                    break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        process.terminate()
        process.wait(timeout=_WAIT_S)


def in_schema(url: str, schema: str) -> str:
    """Make ``schema`` in a PostgreSQL database and return the URL that works inside it."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE SCHEMA "{schema}"')
    return f"{url}?options=-csearch_path%3D{schema}"


def _postgres_binaries() -> Path:
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    on_path = shutil.which("initdb")
    if on_path is not None:
        candidates.append(Path(on_path).resolve().parent)
    for folder in reversed(candidates):
        if (folder / "initdb").is_file() and (folder / "pg_ctl").is_file():
            return folder
    raise FileNotFoundError("PostgreSQL is not installed. On Debian: apt-get install postgresql")


def _as(user: str | None, *command: object) -> None:
    subprocess.run(
        [str(part) for part in command],
        check=True,
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        cwd="/",
        user=user,
        group=user,
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
    )
