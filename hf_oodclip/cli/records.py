"""Writing predictions as they come, so that an interrupted run loses nothing and can go on."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

from ..errors import OODCLIPError

__all__ = ["Journal", "OutputFormat", "RecordsError", "write_csv"]

COLUMNS = ("image", "label", "score", "ood_score", "p_value", "is_ood", "nearest_negative", "labels")


class OutputFormat(StrEnum):
    """How predictions are written."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"


class RecordsError(OODCLIPError, ValueError):
    """An output file cannot be written, or a run cannot be resumed from it."""


class Journal:
    """The records of a run: appended to `<file>.partial.jsonl` batch by batch, moved in place at the end.

    The first line names the settings, so that a resumed run cannot mix two of them.

    Args:
        path: Where the finished output goes.
        output: Its format.
        settings: What must be equal for a resumed run.
        resume: Go on from an earlier run.

    Raises:
        RecordsError: An unfinished run is there and `resume` is False, or it had other settings.
    """

    def __init__(self, path: Path, output: OutputFormat, settings: dict[str, Any], resume: bool) -> None:
        self.path = path
        self.output = output
        self.partial = path.with_name(path.name + ".partial.jsonl")
        settings = json.loads(json.dumps(settings))
        if self.partial.exists() and not resume:
            raise RecordsError(
                f"{self.partial} holds an unfinished run: add --resume to go on with it, or delete it to start anew."
            )
        self.done: set[str] = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and self.partial.exists():
            kept = self._read_partial(settings)
        else:
            kept = [json.dumps({"settings": settings})]
            if resume and path.exists():
                kept += [json.dumps(record) for record in _read_finished(path, output)]
        self.done = {json.loads(line)["image"] for line in kept[1:]}
        # Rewritten without a torn last line, so that what is appended starts on a line of its own.
        self.partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file: TextIO = self.partial.open("a", encoding="utf-8")

    def _read_partial(self, settings: dict[str, Any]) -> list[str]:
        text = self.partial.read_text(encoding="utf-8")
        lines = text.split("\n")[:-1]
        if not lines:
            return [json.dumps({"settings": settings})]
        try:
            before = json.loads(lines[0])["settings"]
            for line in lines[1:]:
                json.loads(line)["image"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise RecordsError(f"{self.partial} is damaged ({error}); delete it and start anew.") from error
        changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if changed:
            raise RecordsError(
                f"{self.partial} was made with other settings ({', '.join(changed)}): give the same ones to "
                "resume, or delete it to start anew."
            )
        return lines

    def append(self, records: list[dict[str, Any]]) -> None:
        """Write a batch and make sure it is on its way to the disk."""
        self._file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        self._file.flush()

    def finish(self) -> None:
        """Turn the journal into the output file, all at once."""
        self._file.close()
        finished = self.path.with_name(self.path.name + ".tmp")
        if self.output is OutputFormat.parquet:
            _write_parquet(finished, self._records())
        else:
            with finished.open("w", encoding="utf-8", newline="") as file:
                if self.output is OutputFormat.csv:
                    write_csv(file, self._records())
                else:
                    file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in self._records())
        finished.replace(self.path)
        self.partial.unlink()

    def _records(self) -> Iterator[dict[str, Any]]:
        with self.partial.open(encoding="utf-8") as file:
            next(file)
            for line in file:
                yield json.loads(line)


def write_csv(file: TextIO, records: Iterator[dict[str, Any]], header: bool = True) -> None:
    """Write records as CSV with fixed columns; lists become JSON."""
    writer = csv.DictWriter(file, COLUMNS, restval="")
    if header:
        writer.writeheader()
    for record in records:
        row = {name: value for name, value in record.items() if value is not None}
        if "labels" in row:
            row["labels"] = json.dumps(row["labels"], ensure_ascii=False)
        writer.writerow(row)


def _write_parquet(path: Path, records: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ranked = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float64())]))
    types = (
        pa.string(), pa.string(), pa.float64(), pa.float64(), pa.float64(), pa.bool_(), pa.string(), ranked
    )  # fmt: skip
    schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
    with pq.ParquetWriter(path, schema) as writer:
        batch: list[dict[str, Any]] = []
        for record in records:
            batch.append(record)
            if len(batch) == 10_000:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema))


def _read_finished(path: Path, output: OutputFormat) -> list[dict[str, Any]]:
    try:
        if output is OutputFormat.parquet:
            import pyarrow.parquet as pq

            rows = pq.read_table(path).to_pylist()
            return [{name: value for name, value in row.items() if value is not None} for row in rows]
        text = path.read_text(encoding="utf-8")
        if output is OutputFormat.csv:
            return [_from_csv(row) for row in csv.DictReader(io.StringIO(text, newline=""))]
        return [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordsError(f"{path} is no output of an earlier run ({error}); choose another file.") from error


def _from_csv(row: dict[str, str]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, text in row.items():
        if name in ("score", "ood_score", "p_value"):
            record[name] = float(text) if text else None
        elif name == "is_ood":
            record[name] = text == "True" if text else None
        elif name == "labels":
            if text:
                record[name] = json.loads(text)
        elif text or name in ("image", "label"):
            record[name] = text
    return record
