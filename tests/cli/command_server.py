"""Runs command lines as real processes without paying for the imports each time.

Started as a script, it imports what the verbs need once and then forks one child per request, which becomes a
``cilseg`` process of its own: exit codes, signals, working directory and standard streams are real. The server itself
computes nothing, so its children may train.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 600
PRELOADED = (
    "cilseg.cli.main",
    "cilseg.update",
    "cilseg.evaluate.report",
    "cilseg.registry.lookup",
    "cilseg.registry.moves",
    "cilseg_export.onnx_export",
    "cilseg_export.parity",
    "cilseg_serve",
    "onnxruntime",
    "onnxscript",
    "rich.progress",
    "rich.table",
    "timm",
)


@dataclass(frozen=True)
class Finished:
    """What a command answered: exit code (negative: the signal that killed it) and both streams."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class CommandServer:
    """Starts commands in children of one server process."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in ("CILSEG_REGISTRY", "NO_COLOR", "FORCE_COLOR")}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "140"},
        )

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def start(
        self,
        arguments: Sequence[object],
        *,
        cwd: Path,
        streams: Path,
        env: Mapping[str, str] | None = None,
        sabotage: Sequence[str] = (),
    ) -> int:
        """Start a command and return its process id; ``sabotage`` names a function of ``sabotage.py`` and arguments."""
        return int(
            self._ask(
                {
                    "arguments": [str(a) for a in arguments],
                    "cwd": str(cwd),
                    "streams": str(streams),
                    "env": dict(env or {}),
                    "sabotage": list(sabotage),
                }
            )
        )

    def wait(self, process_id: int, *, streams: Path) -> Finished:
        """Wait for the end of a command."""
        code = int(self._ask({"wait": process_id}))
        return Finished(code, (streams / "out").read_text(), (streams / "err").read_text())

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the command server died"
        return json.loads(answer)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever an import prints must not look like an answer
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _become(request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _become(request: dict[str, Any]) -> None:
    """Turn this child into the command; never returns."""
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(LIMIT_S)
        streams = Path(request["streams"])
        for number, name in ((1, "out"), (2, "err")):
            handle = os.open(streams / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
        os.chdir(request["cwd"])
        os.environ.update(request["env"])
        sys.argv = ["cilseg", *request["arguments"]]
        if request["sabotage"]:
            function, *arguments = request["sabotage"]
            getattr(importlib.import_module("sabotage"), function)(*arguments)
        from cilseg.cli.main import run

        try:
            run()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
