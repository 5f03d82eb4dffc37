"""A set that is being written: which shards are whole, so that an interrupted write goes on and several jobs share one.

``OUT/unfinished/`` holds the plan's digest, for each whole shard a record, and the shards that are under way. It goes when
the manifest is written.
"""

from __future__ import annotations

import contextlib
import io
import json
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.plan import Plan, PlannedShard
from vmreid.data.manifest import Shard, sha256_of
from vmreid.errors import UserError
from vmreid.run_folder import write_atomically

# a picture: its range, what training knows its bytes by, and what two of the same bytes share
ROW_DTYPE = np.dtype([("offset", "<i8"), ("length", "<i8"), ("crc32", "<u4"), ("digest", "S16")])


@dataclass(frozen=True)
class Record:
    """A whole shard, and a row of ``ROW_DTYPE`` for each of its pictures."""

    shard: Shard
    rows: np.ndarray


class Unfinished:
    """The folder beside the shards of ``out``; made for ``plan`` where it is not there yet.

    Raises UserError where ``out`` cannot be made, is in use, or holds an unfinished write of another plan.
    """

    def __init__(self, out: Path, plan: Plan) -> None:
        self.out, self.plan = out, plan
        self._folder = out / "unfinished"
        self._plan_file = self._folder / "plan.json"
        if out.exists() and (not out.is_dir() or self._used()):
            raise UserError(f"{out}: exists and is not an empty folder; give a new --out, or remove it first")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be made ({error.strerror}); choose another --out") from None
        if self._plan_file.is_file():
            self._compare()
        else:
            write_atomically(self._plan_file, json.dumps({"digest": plan.digest, "source": plan.source}))

    def _used(self) -> bool:
        """Looks for files first: another process writes the plan before all others."""
        others = [entry for entry in self.out.iterdir() if entry != self._folder]
        inside = [entry for entry in self._folder.glob("*") if not entry.name.startswith(f".{self._plan_file.name}")]
        return bool(others or inside) and not self._plan_file.is_file()

    def _compare(self) -> None:
        try:
            begun = json.loads(self._plan_file.read_text())
            digest, source = begun["digest"], begun["source"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self._plan_file}: not readable; remove {self.out}, or give another --out") from None
        if digest != self.plan.digest:
            other = "these settings, but of other pictures" if source == self.plan.source else json.dumps(source)
            raise UserError(
                f"{self.out}: holds an unfinished write of {other}; go on with the command that began it, remove the folder, or "
                "give another --out"
            )

    def recorded(self) -> set[str]:
        """Names of the shards that some process has finished."""
        return {path.stem for path in self._folder.glob("*.npz")}

    def is_whole(self, shard: PlannedShard) -> bool:
        """Whether the shard was finished and still has the bytes it had then."""
        record = self.record(shard)
        path = self.out / shard.name
        return record is not None and path.is_file() and sha256_of(path) == record.shard.sha256

    def record(self, shard: PlannedShard) -> Record | None:
        """What was kept of a finished shard; None where nothing was, or nothing readable."""
        try:
            with np.load(self._folder / f"{shard.name}.npz", allow_pickle=False) as kept:
                rows, size, sha256 = kept["rows"], int(kept["size"]), str(kept["sha256"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        if rows.dtype != ROW_DTYPE or len(rows) != len(shard.pictures):
            return None
        return Record(Shard(name=shard.name, size=size, sha256=sha256, pictures=len(rows)), rows)

    def records(self) -> dict[str, Record] | None:
        """Of all the plan's shards, by name; None while any is missing or no longer has its size."""
        if not {shard.name for shard in self.plan.shards} <= self.recorded():
            return None
        records = {}
        for shard in self.plan.shards:
            record, path = self.record(shard), self.out / shard.name
            if record is None or not path.is_file() or path.stat().st_size != record.shard.size:
                return None
            records[shard.name] = record
        return records

    @contextlib.contextmanager
    def under_way(self, shard: PlannedShard) -> Iterator[Path]:
        """A path to write the shard to; it is removed where that fails. Two processes never get the same."""
        path = self._folder / f"{shard.name}.{secrets.token_hex(4)}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def keep(self, shard: PlannedShard, path: Path, rows: np.ndarray) -> None:
        """The shard at ``path`` is whole: move it to its place, then record it."""
        size, sha256 = path.stat().st_size, sha256_of(path)
        path.replace(self.out / shard.name)
        data = io.BytesIO()
        np.savez(data, rows=rows, size=np.int64(size), sha256=np.str_(sha256))
        write_atomically(self._folder / f"{shard.name}.npz", data.getvalue())

    def remove(self) -> None:
        """The set is whole. Another process may be removing the folder too."""
        shutil.rmtree(self._folder, ignore_errors=True)
