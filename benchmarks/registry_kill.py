"""kill -9 at every kill point of the registry's operations, several times each; is anything lost?

Every operation runs in a forked process that kills itself at a named point: before a write, fsync, rename, deletion or
commit. Then ``fsck`` must find nothing, no version may be half there, the alias must point at a complete version, and
the repeated operation must succeed. Run with ``python -m benchmarks.registry_kill``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import alembic.runtime.environment  # noqa: F401  once, instead of in every child
import sqlalchemy

from benchmarks.record import write_record
from benchmarks.registry_scenarios import SCENARIOS, copied, faults_after, folder_world, kill_at, points_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=5, help="kills at every point")
    arguments = parser.parse_args()
    os.environ.pop("CILSEG_KILL_POINT", None)
    # What a killed process wrote is in the page cache: waiting for the disk proves nothing here and takes long.
    os.fsync = lambda _: None  # type: ignore[assignment]
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="cilseg-kill-") as temporary:
        root = Path(temporary)
        template = folder_world(root / "template")
        for name, scenario in SCENARIOS.items():
            points = points_of(copied(template, root / f"{name}-trace"), scenario)
            for point, passings in sorted(points.items()):
                kills, faults = 0, []
                for attempt in range(arguments.kills):
                    world = copied(template, root / f"{name}-{point}-{attempt}")
                    kills += kill_at(world, scenario, point, attempt % passings + 1)
                    faults += faults_after(world, scenario)
                rows.append({"operation": name, "point": point, "passings": passings, "kills": kills, "faults": faults})
                print(f"{name:22} {point:26} {kills} kills, {len(faults)} faults", flush=True)
    lost = sum("lost versions" in fault for row in rows for fault in row["faults"])
    summary = {
        "lost_versions": lost,
        "faults": sum(len(row["faults"]) for row in rows),
        "kills": sum(row["kills"] for row in rows),
        "points": len(rows),
        "fewest_kills_at_a_point": min(row["kills"] for row in rows),
    }
    write_record(
        "registry_kill",
        command=f"python -m benchmarks.registry_kill --kills {arguments.kills}",
        rows=rows,
        summary=summary,
        table=_table(rows),
        note="SQLite and a folder; the tests marked `systems` do the same on PostgreSQL and an S3 server.",
    )
    print(summary)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| operation | kill points | kills | faults |", "|---|---|---|---|"]
    for name in dict.fromkeys(row["operation"] for row in rows):
        mine = [row for row in rows if row["operation"] == name]
        faults = sum(len(row["faults"]) for row in mine)
        lines.append(f"| {name} | {len(mine)} | {sum(row['kills'] for row in mine)} | {faults} |")
    return lines


if __name__ == "__main__":
    main()
