"""The figures of an exec pool and of its manifest as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from graphkit.counts import counted
from graphkit.pool_policy import Step

if TYPE_CHECKING:
    from graphkit.pool_manifest import Manifest
    from graphkit.pool_stats import PoolMemory, PoolStats
    from graphkit.signature import Signature

__all__ = ["manifest_table", "stats_table"]

_WIDEST = 100  # columns


def stats_table(stats: PoolStats, name: str = "pool", most: int = 20) -> RenderableType:
    """Return what a pool did, for a ``rich.console.Console`` to print; at most 100 columns wide.

    Args:
        stats: what it did.
        name: what to call it.
        most: how many keys to show, the most asked for first.
    """
    parts: list[RenderableType] = [_title(name, _requests(stats)), _totals(stats)]
    parts += ["", _memory(stats.memory)]
    if stats.steps or stats.warm:
        parts += ["", _steps(stats)]
    if stats.fallbacks:
        table = _table("answered eagerly", "requests")
        for reason, count in sorted(stats.fallbacks.items(), key=lambda item: -item[1]):
            table.add_row(str(reason), f"{count:,}")
        parts += ["", table]
    if stats.keys:
        parts += ["", _keys(stats, most)]
    if len(stats.keys) > most:
        parts.append(Text(f"and {counted(len(stats.keys) - most, 'more key')}"))
    return Constrain(Group(*parts), _WIDEST)


def manifest_table(manifest: Manifest) -> RenderableType:
    """Return a manifest's keys, for a ``rich.console.Console`` to print; at most 100 columns wide.

    They come in the order of :meth:`Manifest.ordered`.
    """
    entries = manifest.ordered()
    hits = sum(entry.hits for entry in entries)
    parts: list[RenderableType] = [
        _title(manifest.function, f"{counted(len(entries), 'key')}, {counted(hits, 'hit')}")
    ]
    if entries:
        table = _table("key", "hits", "ms", "size", "failures")
        table.columns[0].footer = "total"
        table.columns[1].footer = f"{hits:,}"
        table.columns[2].footer = f"{sum(entry.milliseconds for entry in entries):,.3f}"
        table.columns[3].footer = _size(sum(entry.nbytes for entry in entries))
        table.columns[4].footer = f"{sum(entry.failures for entry in entries):,}"
        table.show_footer = True
        for entry in entries:
            table.add_row(
                _key(entry.key),
                f"{entry.hits:,}",
                f"{entry.milliseconds:,.3f}",
                _size(entry.nbytes),
                f"{entry.failures:,}",
            )
        parts.append(table)
    if manifest.left_out:
        left_out = counted(manifest.left_out, "key")
        parts.append(Text(f"without {left_out} whose values JSON cannot hold"))
    return Constrain(Group(*parts), _WIDEST)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", footer_style="bold")
    for number, column in enumerate(columns):
        if number == 0:
            table.add_column(column, overflow="fold")
        else:
            # A number that is broken over two lines is another number.
            table.add_column(column, justify="right", no_wrap=True)
    return table


def _title(name: str, text: str) -> Text:
    return Text(f"{_printable(name)}: {text}", overflow="fold")


def _printable(text: str) -> str:
    """Make control characters visible: names in a file may hold those that steer a terminal."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _key(key: Signature) -> Text:
    # As Text, or rich would take float32[8, 128] for markup.
    return Text(_printable(str(key)) or "no arguments", overflow="fold")


def _size(nbytes: int) -> str:
    """Return a number of bytes with its unit, such as ``1.5 MiB``; units are of one width."""
    if nbytes < 1024:
        return f"{nbytes}   B"
    size = float(nbytes)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if round(size, 1) < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:,.1f} TiB"


def _requests(stats: PoolStats) -> str:
    if not stats.requests:
        return "no requests"
    return f"{counted(stats.requests, 'request')}, {stats.hit_rate:.1%} hits"


def _totals(stats: PoolStats) -> Table:
    table = _table("", "", "")
    table.show_header = False
    table.columns[2].justify = "left"
    table.add_row("hits", f"{stats.hits:,}", "")
    if stats.rebound:
        table.add_row("of them rebound", f"{stats.rebound:,}", "large inputs read where they are")
    table.add_row("elements", f"{stats.elements:,}", "")
    padding = stats.padded_elements - stats.elements
    table.add_row("padding", f"{padding:,}", f"{stats.padding_ratio:.1%} of the padded elements")
    table.add_row("captures", f"{stats.captures:,}", "")
    table.add_row("failed captures", f"{stats.failures:,}", "")
    table.add_row("instantiations", f"{stats.instantiates:,}", "")
    table.add_row("evictions", f"{stats.evictions:,}", "")
    for how, count in stats.updates.items():
        table.add_row("moves refused" if how == "refused" else f"moves by {how}", f"{count:,}", "")
    return table


def _memory(memory: PoolMemory) -> Table:
    table = _table("device memory", "size", "")
    table.columns[2].justify = "left"
    for part in ("arenas", "execs", "graphs"):
        table.add_row(part, _size(getattr(memory, part)), "")
    table.add_row("all", _size(memory.total), _of_budget(memory))
    return table


def _of_budget(memory: PoolMemory) -> str:
    if memory.budget is None:
        return "no budget"
    share = f"{memory.total / memory.budget:.1%} of " if memory.budget else "of "
    return f"{share}{_size(memory.budget)}"


def _steps(stats: PoolStats) -> Table:
    table = _table("step", "times", "ms", "us each", "warm-up", "ms", "us each")
    for step in Step:
        if step not in stats.steps and step not in stats.warm:
            continue
        cells: list[str] = []
        for taken in (stats.steps.get(step), stats.warm.get(step)):
            if taken is None or not taken.count:
                cells += ["-", "-", "-"]
            else:
                ms = taken.milliseconds
                # Plain launches are timed by samples: too few of them, and there is no time.
                times = [f"{ms:,.3f}", f"{ms * 1e3 / taken.count:,.1f}"] if ms else ["-", "-"]
                cells += [f"{taken.count:,}", *times]
        table.add_row(step.value, *cells)
    return table


def _keys(stats: PoolStats, most: int) -> Table:
    table = _table("key", "hits", "eager", "moves", "failed", "ms", "size")
    for key in stats.keys[:most]:
        counts = (key.hits, key.eager, key.moves, key.failures)
        table.add_row(
            _key(key.key),
            *(f"{count:,}" for count in counts),
            f"{key.milliseconds:,.1f}",
            _size(key.nbytes),
        )
    return table
