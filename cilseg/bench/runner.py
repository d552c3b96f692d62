"""Running the cells of a protocol side by side, each in its own process; finished ones are kept."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cilseg.bench.cells import OUTPUT, REQUEST, WEIGHTS, read_cell
from cilseg.bench.data import ProtocolData
from cilseg.bench.plan import Cell, differing, identity, training_rows
from cilseg.bundle import hash_file, write_file_atomically
from cilseg.errors import ConflictError, FaultCollector, InputError, did_you_mean
from cilseg.train.engine import LOG_FILE, RESUME_FILE

_LOGGER = logging.getLogger(__name__)
_POLL_S = 0.2
_STOP_S = 10.0
LOG_TAIL = 6

FAILED = "failed.txt"

Status = Literal["done", "interrupted", "failed", "ready", "waits", "other settings", "refused"]
"""``failed``: it will be tried again; ``refused``: it cannot be run at all."""


@dataclass(frozen=True)
class State:
    """Where a cell stands; ``note`` says it in a few words."""

    cell: Cell
    status: Status
    note: str = ""
    result: Mapping[str, Any] | None = None


@dataclass
class Outcome:
    """What a run left behind: finished cells with their results, and the failed ones with their reasons."""

    results: dict[Cell, Mapping[str, Any]] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)
    skipped: dict[Cell, str] = field(default_factory=dict)


def picked(cells: Sequence[Cell], picks: Sequence[str]) -> list[Cell]:
    """Return the cells of ``ROW`` or ``ROW:SEED`` and the cells that they start from; all without picks.

    Raises:
        InputError: rows or seeds that the protocol lacks, all of them.
    """
    if not picks:
        return list(cells)
    faults = FaultCollector("--cells")
    rows, seeds = list(dict.fromkeys(c.row for c in cells)), sorted({c.seed for c in cells})
    chosen: set[Cell] = set()
    for text in picks:
        row, _, seed = text.partition(":")
        if row not in rows:
            faults.add(f"{text!r}: no row is called {row!r}.{did_you_mean(row, rows)} Rows: {', '.join(rows)}")
            continue
        matching = [c for c in cells if c.row == row and seed in ("", str(c.seed))]
        if not matching:
            own = sorted({c.seed for c in cells if c.row == row})
            faults.add(f"{text!r}: row {row!r} has the seeds {own}, of {seeds}")
        for cell in matching:
            node: Cell | None = cell
            while node is not None:
                chosen.add(node)
                node = node.parent
    faults.raise_if_any("Write METHOD or METHOD:SEED.")
    return [c for c in cells if c in chosen]


def states(data: ProtocolData, work: Path, cells: Sequence[Cell]) -> list[State]:
    """Return where each cell stands; nothing is written."""
    known: dict[Cell, State] = {}
    for cell in cells:
        known[cell] = _state(data, work, cell, known)
    return [known[cell] for cell in cells]


def _state(data: ProtocolData, work: Path, cell: Cell, known: Mapping[Cell, State]) -> State:
    folder, parent = work / cell.id, cell.parent
    try:
        training_rows(data, cell)
    except InputError as exc:
        return State(cell, "refused", str(exc))
    weights = None
    if parent is not None:
        above = known[parent] if parent in known else _state(data, work, parent, known)
        if above.result is None:
            return State(cell, "waits", f"for {parent.id}")
        weights = str(above.result["weights_sha256"])
    wanted = _plain(identity(data, cell, parent_weights=weights))
    result = read_cell(folder)
    started = bool(list(folder.rglob(RESUME_FILE)))
    if result is not None and (folder / WEIGHTS).is_file():
        changed = differing(result["identity"], wanted)
    elif started and (asked := _asked(folder)) is not None:
        changed = differing(asked, wanted)
        result = None
    else:
        changed, result = [], None
    if changed:
        return State(cell, "other settings", ", ".join(changed[:4]) + (" ..." if len(changed) > 4 else ""))
    if result is not None:
        return State(cell, "done", f"{result['train_s']:.0f} s", result)
    if (folder / FAILED).is_file():
        return State(cell, "failed", (folder / FAILED).read_text(encoding="utf-8").splitlines()[-1].strip())
    if started:
        return State(cell, "interrupted", f"after {_iterations(folder)} iterations")
    return State(cell, "ready")


def _asked(folder: Path) -> dict[str, Any] | None:
    """Return the identity that a cell was last started with."""
    path = folder / REQUEST
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["identity"]
    return found


def _plain(value: dict[str, Any]) -> Any:
    return json.loads(json.dumps(value))


def _iterations(folder: Path) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob(LOG_FILE))


def run_cells(
    data: ProtocolData,
    work: Path,
    cells: Sequence[Cell],
    *,
    jobs: int | None = None,
    threads: int = 1,
    redo: bool = False,
    say: Callable[[str], None] = _LOGGER.info,
) -> Outcome:
    """Run every cell that is not finished, at most ``jobs`` side by side; one failing cell does not stop the others.

    Args:
        data: the opened protocol.
        work: folder of the cells.
        cells: which ones, each after its parent.
        jobs: processes side by side; None: one per visible CUDA device, else one.
        threads: of each process.
        redo: replace cells that were made with other settings.
        say: told what starts and ends.

    Raises:
        ConflictError: cells made with other settings, all of them, unless ``redo``.
    """
    found = states(data, work, cells)
    _refuse_other_settings(found, redo=redo)
    outcome = Outcome()
    for state in found:
        if state.status == "refused":
            outcome.failed[state.cell] = state.note
            say(f"{state.cell.id}: {state.note}")
    devices = cuda_devices() if data.config.runtime.device in ("auto", "cuda") else []
    slots = list(range(jobs or max(1, len(devices))))
    running: dict[Cell, tuple[subprocess.Popen[bytes], int]] = {}
    waiting = _runnable(cells, outcome.failed)
    try:
        while waiting or running:
            for cell, (process, slot) in list(running.items()):
                if process.poll() is not None:
                    del running[cell]
                    slots.append(slot)
                    _finish(work, cell, process.returncode, outcome, say)
            for cell in list(waiting):
                parent = cell.parent
                if parent is not None and (parent in outcome.failed or parent in outcome.skipped):
                    waiting.remove(cell)
                    outcome.skipped[cell] = f"{parent.id} is not there"
                elif slots and (parent is None or parent in outcome.results):
                    waiting.remove(cell)
                    state = states(data, work, [cell])[0]
                    if state.result is not None:
                        outcome.results[cell] = state.result
                    else:
                        if state.status == "other settings":
                            shutil.rmtree(work / cell.id)
                        slot = slots.pop(0)
                        device = devices[slot % len(devices)] if devices else None
                        running[cell] = (_launch(data, work, cell, threads=threads, device=device), slot)
                        say(f"{cell.id}: {f'resumed {state.note}' if state.status == 'interrupted' else 'started'}")
            time.sleep(_POLL_S if running else 0)
    finally:
        _stop([process for process, _ in running.values()])
    return outcome


def _refuse_other_settings(found: Sequence[State], *, redo: bool) -> None:
    faults = FaultCollector("Cells made with other data or settings")
    for state in found:
        if state.status == "other settings" and not redo:
            faults.add(f"{state.cell.id}: {state.note}")
    faults.raise_if_any("Give another --work folder, or replace them with --redo.", error=ConflictError)


def _runnable(cells: Sequence[Cell], refused: Collection[Cell]) -> list[Cell]:
    """Return the cells that are not refused, without the bases that only refused cells would start from."""
    rest = [cell for cell in cells if cell not in refused]
    idle = {cell.parent for cell in refused} - {cell.parent for cell in rest}
    return [cell for cell in rest if cell not in idle]


def _launch(data: ProtocolData, work: Path, cell: Cell, *, threads: int, device: str | None) -> subprocess.Popen[bytes]:
    folder, parent = work / cell.id, cell.parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED).unlink(missing_ok=True)
    weights = hash_file(work / parent.id / WEIGHTS) if parent else None
    config = data.config.model_dump(mode="json")
    config["runtime"]["threads"] = threads
    wanted = _plain(identity(data, cell, parent_weights=weights))
    asked = _asked(folder)
    if asked is not None and not differing(asked, wanted):
        wanted = asked  # an option was added to cilseg since; the checkpoint knows the identity without it
    request = {
        "cell": {"rule": cell.rule, "seed": cell.seed, "row": cell.row, "step": cell.step},
        "work": str(work.absolute()),
        "parent": str((work / parent.id).absolute()) if parent else None,
        "config": config,
        "identity": wanted,
    }
    write_file_atomically(folder / REQUEST, json.dumps(request, indent=1).encode())
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    with (folder / OUTPUT).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-Pm", "cilseg.bench.cell", str(folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the runner alone, which stops its cells
        )


def _finish(work: Path, cell: Cell, code: int, outcome: Outcome, say: Callable[[str], None]) -> None:
    folder = work / cell.id
    result = read_cell(folder)
    if code == 0 and result is not None:
        outcome.results[cell] = result
        means = next(iter(result["scores"].values()))["C"]
        shown = " ".join(f"{k} {v:.1f}" for k, v in means.items() if v is not None)
        say(f"{cell.id}: {shown} ({result['train_s']:.0f} s)")
        return
    tail = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:]
    ended = f"exit code {code}" if code >= 0 else f"signal {-code}"
    outcome.failed[cell] = f"{ended}; last lines of {folder / OUTPUT}:\n    " + "\n    ".join(tail)
    (folder / FAILED).write_text("\n".join([ended, *tail]) + "\n", encoding="utf-8")
    say(f"{cell.id}: failed, {outcome.failed[cell]}")


def _stop(processes: Collection[subprocess.Popen[bytes]]) -> None:
    """End the processes that still run; they go on from their last checkpoint another time."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cuda_devices() -> list[str]:
    """Return the CUDA devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if len(named) >= count else [str(i) for i in range(count)]
