"""A real Triton Inference Server: the binary inside the wheel nvidia-pytriton, with its Python backend.

It lives in an environment of its own, made once below ``CILSEG_TEST_CACHE`` (default ``~/.cache/cilseg-tests``), since
its Python stub needs numpy 1: with numpy 2 it hands out empty tensors without an error.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

PYTRITON = "0.7.0"
PACKAGES = ("numpy==1.26.4", "onnxruntime==1.23.2")
_READY_S = 120


def triton_environment() -> Path:
    """Return the environment with the server, made on first use."""
    cache = Path(os.environ.get("CILSEG_TEST_CACHE") or Path.home() / ".cache" / "cilseg-tests")
    target = cache / f"triton-{PYTRITON}-py{sys.version_info.major}{sys.version_info.minor}"
    if (target / "complete").is_file():
        return target
    shutil.rmtree(target, ignore_errors=True)
    venv.create(target, with_pip=True)
    pip = [target / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # The server alone is wanted of it, not its Python client with a dozen dependencies.
    subprocess.run([*pip, "--no-deps", f"nvidia-pytriton=={PYTRITON}"], check=True)
    subprocess.run([*pip, *PACKAGES], check=True)
    packages = _site_packages(target)
    server = packages / "pytriton" / "tritonserver"
    stub = f"{sys.version_info.major}.{sys.version_info.minor}"
    backend = target / "backends" / "python"
    shutil.copytree(server / "backends" / "python", backend)
    shutil.copy2(server / "python_backend_stubs" / stub / "triton_python_backend_stub", backend)
    (target / "complete").touch()
    return target


def _site_packages(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


class TritonServer:
    """Serves a model repository until :meth:`stop`; ``explicit`` loads models only when a client asks."""

    def __init__(self, repository: Path, log: Path, *, explicit: bool = False) -> None:
        environment = triton_environment()
        packages = _site_packages(environment)
        self.port = _free_port()
        self._log = log
        command = [
            packages / "pytriton" / "tritonserver" / "bin" / "tritonserver",
            f"--model-repository={repository}",
            f"--backend-directory={environment / 'backends'}",
            f"--http-port={self.port}",
            "--http-address=127.0.0.1",
            "--allow-grpc=false",
            "--allow-metrics=false",
            "--exit-timeout-secs=10",
            *(["--model-control-mode=explicit", "--load-model=*"] if explicit else []),
        ]
        # The wheel's libraries, and this interpreter's own libpython rather than the system's.
        libraries = [packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        variables = {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            "PYTHONPATH": str(packages),
            "PYTHONHOME": sys.base_prefix,
        }
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                list(map(str, command)), stdout=stream, stderr=stream, env=variables, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _wait(self) -> None:
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise AssertionError(f"Triton stopped with {self._process.returncode}:\n{self.log[-40_000:]}")
            try:
                with urllib.request.urlopen(f"http://{self.address}/v2/health/ready", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.2)
        raise AssertionError(f"Triton was not ready after {_READY_S} s:\n{self.log[-40_000:]}")

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
