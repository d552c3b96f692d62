"""Many processes promote and roll back one alias at once; is every move in the history exactly once, in one line?

``python -m benchmarks.registry_concurrency`` runs it on SQLite and on a private PostgreSQL server (Debian: package
``postgresql``), or on the one that ``CILSEG_TEST_POSTGRES`` names.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import tempfile
import time
import traceback
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.record import write_record
from benchmarks.registry_scenarios import NAME, make_bundle
from benchmarks.servers import in_schema, postgres_server
from cilseg.errors import ConflictError
from cilseg.registry import Registry
from cilseg.registry.check import check_registry

VERSIONS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", choices=["sqlite", "postgresql"])
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="cilseg-concurrency-") as temporary:
        root = Path(temporary)
        if arguments.only != "postgresql":
            rows.append(_run("sqlite", Registry.open(root / "registry"), root / "a", arguments))
        if arguments.only != "sqlite":
            with postgres_server() as server:
                registry = Registry.open(in_schema(server, f"c{uuid.uuid4().hex[:8]}"))
                registry.migrate(store=str(root / "store"))
                rows.append(_run("postgresql", registry, root / "b", arguments))
    keys = ("lost_events", "doubled_events", "breaks", "errors", "faults")
    summary: dict[str, float | None] = {key: sum(row[key] for row in rows) for key in keys}
    summary |= {f"moves_per_s_{row['database']}": row["moves_per_s"] for row in rows}
    table = ["| database | processes | seconds | moves | moves/s | lost | doubled | breaks | errors | slowest move s |"]
    table += ["|---|---|---|---|---|---|---|---|---|---|"]
    table += [
        f"| {r['database']} | {r['processes']} | {r['seconds']:.0f} | {r['moves']} | {r['moves_per_s']:.1f} | "
        f"{r['lost_events']} | {r['doubled_events']} | {r['breaks']} | {r['errors']} | {r['slowest_s']:.2f} |"
        for r in rows
    ]
    write_record(
        "registry_concurrency",
        command=f"python -m benchmarks.registry_concurrency --seconds {arguments.seconds:g}",
        rows=rows,
        summary=summary,
        table=table,
        note="A third of the moves are rollbacks. A rollback with nothing before it is the only refusal allowed.",
    )
    print(summary)


def _run(database: str, registry: Registry, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    for seed in range(VERSIONS):
        registry.register(NAME, make_bundle(folder / f"bundle-{seed}", seed=seed))
    registry.promote(f"{NAME}:1", who="start")
    address = registry.address
    begin = time.monotonic()
    children = {}
    for seed in range(arguments.processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _move(Registry(address), seed, begin + arguments.seconds, folder / f"done-{seed}.json")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children[child] = seed
    died = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    seconds = time.monotonic() - begin
    answers = [json.loads((folder / f"done-{seed}.json").read_text()) for seed in range(arguments.processes)]
    return {
        "database": database,
        "processes": arguments.processes,
        "seconds": seconds,
        **_judge(Registry(address), answers),
        "errors": died + sum(len(answer["errors"]) for answer in answers),
        "error_texts": [text for answer in answers for text in answer["errors"]][:5],
        "slowest_s": max(answer["slowest_s"] for answer in answers),
        "moves_per_s": sum(len(answer["moved"]) for answer in answers) / seconds,
    }


def _move(registry: Registry, seed: int, end: float, result: Path) -> None:
    """Move the alias until ``end``; write down what was answered."""
    chance = random.Random(seed)
    moved: list[int] = []
    errors: list[str] = []
    slowest = 0.0
    while time.monotonic() < end:
        begin = time.monotonic()
        try:
            if chance.random() < 1 / 3:
                event = registry.rollback(NAME, who=f"p{seed}", why="benchmark")
            else:
                event = registry.promote(f"{NAME}:{chance.randint(1, VERSIONS)}", who=f"p{seed}", why="benchmark")
            if event.moved:
                moved.append(event.sequence)
        except ConflictError as error:
            if "no earlier version" not in str(error):
                errors.append(str(error))
        except Exception as error:
            errors.append(repr(error))
        slowest = max(slowest, time.monotonic() - begin)
    result.write_text(json.dumps({"moved": moved, "errors": errors, "slowest_s": slowest}))


def _judge(registry: Registry, answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare what the processes were told with the history in the database and in the event log."""
    told = Counter(sequence for answer in answers for sequence in answer["moved"])
    history = registry.history(NAME)
    recorded = Counter(event.sequence for event in history if event.who != "start")
    logged = Counter(row["sequence"] for row in registry.store.read_events() if row["alias"] and row["who"] != "start")
    breaks = sum(
        later.from_number != earlier.to_number or later.sequence <= earlier.sequence
        for earlier, later in itertools.pairwise(history)
    )
    return {
        "moves": len(history) - 1,
        "lost_events": (told - recorded).total() + (told - logged).total(),
        "doubled_events": sum(n > 1 for c in (told, recorded, logged) for n in c.values()) + (recorded - told).total(),
        "breaks": breaks,
        "faults": len(check_registry(registry).faults),
    }


if __name__ == "__main__":
    main()
