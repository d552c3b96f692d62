"""Numbers that papers and repositories printed, with their source and convention; never mixed with ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from cilseg.bench.config import PUBLISHED, protocols_directory
from cilseg.data.protocol import Rule

Score = float | None
_NAMES = {"joint": "Joint", "lwf": "LwF", "lwf-mc": "LwF-MC", "mib": "MiB"}


class _Group(BaseModel):
    """Rows of one source: method -> rule -> old, new, all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    convention: Literal["A", "B", "C"]
    note: str = ""
    judge: str = ""
    rows: dict[str, dict[Rule, tuple[Score, Score, Score]]]


@dataclass(frozen=True)
class PublishedRow:
    """One method of one source; ``scores`` are old, new, all per rule, on the images of ``judge`` ("": the first)."""

    method: str
    source: str
    convention: str
    note: str
    judge: str
    scores: Mapping[Rule, tuple[Score, Score, Score]]

    @property
    def label(self) -> str:
        return _NAMES.get(self.method, self.method.upper())

    @property
    def where(self) -> str:
        return f"{self.source}, convention {self.convention}" + (f"; {self.note}" if self.note else "")

    def texts(self, rule: Rule) -> tuple[str, str, str]:
        """Return old, new and all of ``rule`` as text."""
        old, new, every = self.scores.get(rule, (None, None, None))
        return _text(old), _text(new), _text(every)


def _text(value: Score) -> str:
    return "-" if value is None else f"{value:.1f}"


def published_rows(protocol: str) -> list[PublishedRow]:
    """Return what was published for the protocol of that name, in the order of the file; empty where nothing is."""
    path = protocols_directory() / f"{PUBLISHED}.yaml"
    groups = yaml.safe_load(path.read_text(encoding="utf-8")).get(protocol, [])
    return [
        PublishedRow(method, group.source, group.convention, group.note, group.judge, scores)
        for group in map(_Group.model_validate, groups)
        for method, scores in group.rows.items()
    ]
