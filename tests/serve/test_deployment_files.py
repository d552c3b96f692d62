"""Dockerfile, compose file and systemd unit: linted by the tools made for them; nothing is built or started here."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from cilseg.cli.main import VERBS, app

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE, COMPOSE, UNIT = (ROOT / "serve" / name for name in ("Dockerfile", "compose.yaml", "cilseg.service"))
TOOLS = Path(sys.executable).parent
HARDENED = {"NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp", "DynamicUser", "RestrictNamespaces"}


def stages() -> dict[str, str]:
    """Text of each build stage by name."""
    parts = re.split(r"^FROM \S+ AS (\w+)$", DOCKERFILE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def serve_commands() -> list[list[str]]:
    """Every command line of `cilseg serve` in the files, as words."""
    found = [json.loads(text) for text in re.findall(r'^CMD (\["cilseg".*\])$', DOCKERFILE.read_text(), re.MULTILINE)]
    found += [shlex.split(text) for text in re.findall(r"^ExecStart=\S+/(cilseg .*)$", UNIT.read_text(), re.MULTILINE)]
    return found


def test_dockerfile_passes_hadolint() -> None:
    tool = TOOLS / "hadolint"
    done = subprocess.run([tool, "--format", "tty", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_can_fail(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nRUN cd /tmp && apt-get install curl\n")
    assert subprocess.run([TOOLS / "hadolint", tmp_path / "Dockerfile"], capture_output=True).returncode == 1


def test_images_run_as_an_ordinary_user_and_say_how_they_are() -> None:
    targets = stages()
    assert set(targets) == {"wheel", "cpu", "gpu"}
    for name in ("cpu", "gpu"):
        lines = targets[name].splitlines()
        assert lines.index("USER 10001:10001") > max(i for i, line in enumerate(lines) if line.startswith("RUN"))
        assert "/v2/health/ready" in targets[name]
        assert "STOPSIGNAL SIGTERM" in lines
        assert f"EXTRAS={name},serve" in targets[name]
    assert ":latest" not in DOCKERFILE.read_text()


def test_build_context_is_enough_for_the_wheel(tmp_path: Path) -> None:
    """What the ignore file lets through, built the way the first stage does it."""
    rules = [line for line in DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().split() if line != "#"]
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    context = tmp_path / "context"
    context.mkdir()
    for name in kept:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(source, context / name)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "wheels")]
    done = subprocess.run(command, cwd=context, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = (tmp_path / "wheels").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("cilseg_serve/segmenter.py", "cilseg/cli/main.py", "cilseg/configs/tiny.yaml"):
        assert wanted in names
    copied = re.findall(r"^COPY (?!\. )(\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert copied
    assert all((context / name).is_file() for name in copied)
    assert not fnmatch.filter(names, "*test*")


def test_compose_file_has_the_form_that_compose_reads() -> None:
    tool = TOOLS / "check-jsonschema"
    done = subprocess.run([tool, "--builtin-schema", "vendor.compose-spec", COMPOSE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_service_is_read_only_and_stays_on_this_machine() -> None:
    document = yaml.safe_load(COMPOSE.read_text())
    targets = stages()
    for name, service in document["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(str(port).startswith("127.0.0.1:") for port in service["ports"]), name
        assert service["secrets"] == ["cilseg_tokens"], name
        assert service["tmpfs"], "a read-only root needs some place to write"
        assert {volume["target"] for volume in service["volumes"]} == {"/registry"}
        build = service["build"]
        assert (COMPOSE.parent / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE
        assert build["target"] in targets
        assert int(service["stop_grace_period"].rstrip("s")) > 30, "longer than the server's drain"
    assert document["services"]["cilseg-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "cilseg.service"
    unit.write_text(UNIT.read_text().replace("/opt/cilseg/bin/cilseg", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, "cilseg.service:" in done.stderr) == (0, False), done.stderr
    unit.write_text(unit.read_text() + "\n[Service]\nNoSuchSetting=yes\n")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert "NoSuchSetting" in done.stderr


def test_unit_is_shut_in() -> None:
    settings = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if re.match(r"\w+=", line))
    assert set(settings) >= HARDENED
    assert settings["ProtectSystem"] == "strict"
    assert int(settings["TimeoutStopSec"]) > 30
    assert "--host 127.0.0.1" in settings["ExecStart"]


@pytest.mark.skipif("serve" not in VERBS, reason="this build has no `cilseg serve`")
def test_options_of_the_server_are_those_it_has() -> None:
    commands = serve_commands()
    assert len(commands) == 3
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    for words in commands:
        assert words[:2] == ["cilseg", "serve"]
        serve.make_context("serve", words[2:], resilient_parsing=False)
