"""The manifest of an exec pool: what its keys were worth, in a file for the next start-up."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any, NoReturn, Self
from uuid import uuid4

from graphkit.signature import Signature

if TYPE_CHECKING:
    from graphkit.pool_stats import PoolStats

__all__ = ["Manifest", "ManifestEntry"]

_FORMAT = "graphkit pool manifest"
_VERSION = 1
# No count reaches it, and below it every one can be multiplied with a float.
_TOO_MANY = 1 << 63


@dataclass(frozen=True)
class ManifestEntry:
    """What one key was asked for and what it took.

    Attributes:
        key: the signature of its graph.
        hits: requests that a graph answered.
        nbytes: device memory of the exec that held it; 0 when none did.
        milliseconds: host time of its captures, instantiations and moves.
        failures: captures that failed.
    """

    key: Signature
    hits: int
    nbytes: int
    milliseconds: float
    failures: int

    @property
    def value(self) -> float:
        """What having the key is worth: its hits, each by what a request without it waits."""
        return self.hits * self.milliseconds

    def with_more(self, other: ManifestEntry) -> ManifestEntry:
        """Return the entry with what another one of the same key counts."""
        return replace(
            self,
            hits=self.hits + other.hits,
            nbytes=self.nbytes + other.nbytes,
            milliseconds=self.milliseconds + other.milliseconds,
            failures=self.failures + other.failures,
        )


@dataclass(frozen=True)
class Manifest:
    """The keys that a pool served.

    Attributes:
        function: the name of the function that was captured.
        entries: one for each key, the most asked for first.
        left_out: keys of the pool that the file does not have, because JSON cannot hold their
            values.
    """

    function: str
    entries: tuple[ManifestEntry, ...]
    left_out: int = 0

    @classmethod
    def of(cls, function: str, stats: PoolStats) -> Self:
        """Return the manifest of a pool.

        Args:
            function: the name of the function that it captures.
            stats: what it did.
        """
        entries: dict[Signature, ManifestEntry] = {}
        asked: Counter[Signature] = Counter()
        for key in stats.keys:
            asked[key.key.staged()] += key.hits + key.eager
            mine = ManifestEntry(
                key.key.staged(), key.hits, key.nbytes, key.milliseconds, key.failures
            )
            other = entries.get(mine.key)  # the same bucket, rebound
            entries[mine.key] = mine if other is None else other.with_more(mine)
        return cls(function, tuple(entries[key] for key, _ in asked.most_common()))

    def ordered(self) -> list[ManifestEntry]:
        """Return the entries in the order to warm up in: the most valuable first.

        Those whose capture failed come last. Among equals, the order of the entries stays.
        """
        return sorted(self.entries, key=lambda entry: (entry.failures, -entry.value))

    def save(self, path: str | os.PathLike[str]) -> tuple[Signature, ...]:
        """Write the manifest as JSON, in one go: a reader sees the old file or the new one.

        Args:
            path: the file; one that is there is replaced.

        Returns:
            The keys that were left out, because JSON cannot hold their values. The file counts
            them.

        Raises:
            OSError: the file cannot be written; what was there is still there.
        """
        held: list[dict[str, Any]] = []
        left_out: list[Signature] = []
        for entry in self.entries:
            try:
                held.append(_entry_to_json(entry))
            except ValueError:
                left_out.append(entry.key)
        data = {
            "format": _FORMAT,
            "version": _VERSION,
            "function": self.function,
            "left_out": self.left_out + len(left_out),
            "entries": held,
        }
        text = json.dumps(data, indent=2, allow_nan=False) + "\n"
        _replace(Path(os.path.realpath(path)), text)
        return tuple(left_out)

    @classmethod
    def load(cls, path: str | os.PathLike[str], function: str | None = None) -> Self:
        """Return the manifest that :meth:`save` wrote.

        Args:
            path: the file.
            function: the name of the function that it must be of; None takes any.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is damaged, of another format or version, or of another function. The
                message names the path, what was expected and what came.
        """
        raw = Path(path).read_bytes()
        try:
            manifest = cls(*_manifest_from_json(_parsed(raw)))
            if function is not None and manifest.function != function:
                raise ValueError(
                    f"function: expected a manifest of {function!r}, "
                    f"came one of {shortened(manifest.function)}"
                )
        except RecursionError:
            raise ValueError(
                f"{os.fspath(path)}: expected a manifest as JSON, came more brackets in one "
                "another than can be read"
            ) from None
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None
        return manifest


def _replace(path: Path, text: str) -> None:
    # Beside, because a rename is whole within one file system only.
    beside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with beside.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a crash could leave the new name on an empty file
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _entry_to_json(entry: ManifestEntry) -> dict[str, Any]:
    return {
        "key": entry.key.to_json(),
        "hits": entry.hits,
        "bytes": entry.nbytes,
        "milliseconds": entry.milliseconds,
        "failures": entry.failures,
    }


# --- reading -------------------------------------------------------------------------------------


def _parsed(raw: bytes) -> object:
    if not raw.strip():
        raise ValueError("expected a manifest as JSON, came an empty file")
    try:
        return json.loads(raw.decode(), parse_constant=_no_number)
    except ValueError as error:
        raise ValueError(f"expected a manifest as JSON, whole: {error}") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"expected a number, came {text}")


def _manifest_from_json(data: object) -> tuple[str, tuple[ManifestEntry, ...], int]:
    # The format first: of a foreign file, its fields are not what is wrong with it.
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        came = data.get("format", data) if isinstance(data, dict) else data
        raise ValueError(f"format: expected {_FORMAT!r}, came {shortened(came)}")
    version = data.get("version")
    if type(version) is not int or version != _VERSION:
        raise ValueError(f"version: expected {_VERSION}, came {shortened(version)}")
    _check_names(data, ("format", "version", "function", "left_out", "entries"), "manifest")
    if type(data["function"]) is not str:
        raise ValueError(f"function: expected a name, came {shortened(data['function'])}")
    if type(data["entries"]) is not list:
        raise ValueError(f"entries: expected a list, came {shortened(data['entries'])}")
    entries = tuple(
        _entry_from_json(entry, f"entries[{place}]") for place, entry in enumerate(data["entries"])
    )
    first: dict[Signature, int] = {}
    for place, entry in enumerate(entries):
        if first.setdefault(entry.key, place) != place:
            raise ValueError(
                f"entries[{place}].key: expected each key once, came that of "
                f"entries[{first[entry.key]}]"
            )
    return data["function"], entries, _count(data, "left_out")


def _entry_from_json(data: object, where: str) -> ManifestEntry:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an entry, came {shortened(data)}")
    _check_names(data, ("key", "hits", "bytes", "milliseconds", "failures"), where)
    try:
        key = Signature.from_json(data["key"])
    except ValueError as error:
        raise ValueError(f"{where}.key: {error}") from None
    milliseconds = data["milliseconds"]
    # 1e999 is read as infinity, and an int may be too large for a float.
    if type(milliseconds) not in (int, float) or not 0 <= milliseconds <= sys.float_info.max:
        came = shortened(milliseconds)
        raise ValueError(f"{where}.milliseconds: expected a number of 0 or more, came {came}")
    return ManifestEntry(
        key=key,
        hits=_count(data, "hits", where),
        nbytes=_count(data, "bytes", where),
        milliseconds=float(milliseconds),
        failures=_count(data, "failures", where),
    )


def _check_names(data: Mapping[str, object], wanted: tuple[str, ...], where: str) -> None:
    if data.keys() != {*wanted}:
        came = ", ".join(map(shortened, data)) or "none"
        raise ValueError(f"{where}: expected {', '.join(wanted)}, came {came}")


def _count(data: Mapping[str, Any], name: str, where: str = "") -> int:
    count = data[name]
    if type(count) is not int or not 0 <= count < _TOO_MANY:
        label = f"{where}.{name}" if where else name
        raise ValueError(f"{label}: expected an int of 0 or more, came {shortened(count)}")
    return count
