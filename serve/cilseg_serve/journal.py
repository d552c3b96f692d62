"""The rows of a batch run, appended one by one, so that a killed run can go on where it was.

The first line says what the run is (model, options, shard); every further line is one image or failure. A row is
written after the files it names; a line that a killed process left unfinished is dropped.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from cilseg.errors import InputError


class Journal:
    """Rows by output name; a ``with`` block closes the file.

    Args:
        path: the file, one JSON object a line.
        head: what the run is.
        resume: keep the rows of an earlier run with the same head; otherwise begin anew.

    Raises:
        InputError: ``resume``, and the earlier run was another one; the message says in what.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, head: dict[str, Any], *, resume: bool) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        whole = self._read(path, head) if resume and path.is_file() else 0
        self._stream: IO[bytes] = path.open("r+b" if whole else "wb")
        if whole:
            self._stream.truncate(whole)
            self._stream.seek(whole)
        else:
            self._write(head)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; it is in the operating system's hands when this returns."""
        self.rows[row["name"]] = row
        self._write(row)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, value: dict[str, Any]) -> None:
        self._stream.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        self._stream.flush()

    def _read(self, path: Path, head: dict[str, Any]) -> int:
        """Take over the rows of ``path``; return how many bytes of it are whole lines."""
        whole = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
            try:
                value = json.loads(line)
                if not line.endswith(b"\n") or not isinstance(value, dict):
                    break
                if number:
                    self.rows[value["name"]] = value
            except (ValueError, KeyError):
                break
            if not number:
                _check_head(path, value, head)
            whole += len(line)
        return whole


def _check_head(path: Path, found: dict[str, Any], head: dict[str, Any]) -> None:
    plain = json.loads(json.dumps(head))
    differs = [
        f"{key} {json.dumps(found.get(key), ensure_ascii=False)}, now {json.dumps(plain.get(key), ensure_ascii=False)}"
        for key in dict.fromkeys([*plain, *found])
        if found.get(key) != plain.get(key)
    ]
    if differs:
        raise InputError(
            f"{path} is of another run ({'; '.join(differs)}), so it cannot be resumed. Repeat the earlier command, or "
            "choose another output folder."
        )
