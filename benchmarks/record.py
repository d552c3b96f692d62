"""How every benchmark writes its result: JSON, and a table beside it, in ``results``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cilseg.bench.latency_memory import peak_mib as peak_mib
from cilseg.bench.record import machine as machine
from cilseg.bench.record import write_record as _write_record

RESULTS = Path(__file__).parent / "results"
write_record = partial(_write_record, folder=RESULTS)
