"""One cell in a process of its own: ``python -m cilseg.bench.cell FOLDER``.

``FOLDER/request.json`` says what to do. The process holds a lock on the folder, so that two runners cannot work on one
cell, goes on from the training checkpoint that it finds, and ends when the process that started it is gone.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path

from cilseg.errors import CilsegError, ConflictError

LOCK = ".lock"
_SHOW_EVERY = 20


def main(arguments: list[str]) -> None:
    """Run the cell of the folder named first.

    Raises:
        ConflictError: another process works on it, or its data changed since it was asked for.
        CilsegError: see :func:`cilseg.bench.cells.run_cell`.
    """
    from cilseg.bench.cells import REQUEST, WEIGHTS, run_cell
    from cilseg.bench.config import ProtocolConfig
    from cilseg.bench.data import open_data
    from cilseg.bench.plan import Cell, differing, identity
    from cilseg.bundle import hash_file
    from cilseg.train.engine import Tick

    folder = Path(arguments[0])
    runner = os.getppid()
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConflictError(
                f"Process {lock.read().strip()} works on {folder} already. Wait for it, or stop it first."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        config = ProtocolConfig.model_validate(request["config"])
        cell = Cell(**request["cell"])
        parent = Path(request["parent"]) if request["parent"] else None
        data = open_data(config, Path(request["work"]))
        now = identity(data, cell, parent_weights=hash_file(parent / WEIGHTS) if parent else None)
        changed = differing(request["identity"], now)
        if changed:
            raise ConflictError(
                f"The data changed while {cell.id} waited ({', '.join(changed)}). Run the command again."
            )

        def show(tick: Tick) -> None:
            if os.getppid() != runner:
                raise ConflictError("The runner is gone; the next one goes on from the last checkpoint.")
            if tick.iteration % _SHOW_EVERY == 0 or tick.iteration == tick.iterations:
                losses = " ".join(f"{k} {v:.3f}" for k, v in tick.losses.items())
                print(f"{tick.iteration}/{tick.iterations} {losses}", flush=True)

        payload = run_cell(data, cell, folder, parent=parent, recorded=request["identity"], on_tick=show)
        first = next(iter(payload["scores"].values()))["C"]
        print(f"{cell.id}: old {first['old']} new {first['new']} all {first['all']}", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CilsegError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
