"""How every benchmark writes its result: JSON, and a table beside it, in ``results``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cilseg.bench.record import machine as machine
from cilseg.bench.record import write_record as _write_record

RESULTS = Path(__file__).parent / "results"
write_record = partial(_write_record, folder=RESULTS)


def peak_mib() -> float:
    """Return the peak of this process's resident memory (Linux). ``ru_maxrss`` may be the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
