"""How every benchmark here measures: interleaved, medians with spread, rows, tables, verdicts.

A contender is sampled in short blocks, all contenders of a case in turn, over and over: clocks,
caches and whatever else the machine does then hit all of them alike. The first calls of a block
are thrown away, because they pay for the caches that the contender before left behind. A
contender's call stands in the timed loop as the source text its own users write, as `timeit` does
it, so that no wrapper is timed with it. The cost of reading the clock is measured and taken off.

Only numbers and text here: no CUDA, no graphkit. What is timed is the benchmark's business.
"""

from __future__ import annotations

import gc
import json
import math
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from provenance import RESULTS, device_slug
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

HOST_US = "host us"
DEVICE_US = "device us"

# --- statistics ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summary:
    """The median of ``n`` samples, with the 20th and 80th percentile as its spread."""

    value: float
    p20: float
    p80: float
    n: int


def over(value: float, took: Summary) -> Summary:
    """Return a value over times, the spread in rising order."""
    return Summary(value / took.value, value / took.p80, value / took.p20, took.n)


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the percentile of sorted or unsorted samples, interpolated between neighbours."""
    if not samples:
        raise ValueError("samples: expected at least one, came none")
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarize(samples: Sequence[float]) -> Summary:
    """Return median, 20th and 80th percentile and the number of samples."""
    p20, median, p80 = (percentile(samples, percent) for percent in (20, 50, 80))
    return Summary(median, p20, p80, len(samples))


# --- contenders ----------------------------------------------------------------------------------

Loop = Callable[[int, int], list[int]]


def timed_loop(
    statement: str, names: Mapping[str, Any], *, before: str = "", after: str = ""
) -> Loop:
    """Return a function ``loop(first, count)`` that times a statement ``count`` times.

    Args:
        statement: the source that is timed, one call of it a sample.
        names: what the sources may name; they are local variables of the loop, which is the
            fastest thing a user could make of them. ``i`` is the number of the sample.
        before: untimed source in front of each sample, a synchronization for example.
        after: untimed source behind each sample.

    Returns:
        The loop; it returns nanoseconds by ``time.perf_counter_ns``, the clock's cost included.
    """
    body = "".join(
        textwrap.indent(textwrap.dedent(source).strip("\n") + "\n", " " * 8)
        for source in (
            before or "pass",
            "start = clock()",
            statement,
            "stop = clock()",
            "samples.append(stop - start)",
            after or "pass",
        )
    )
    parameters = "".join(f", {name}={name}" for name in names)
    source = (
        f"def loop(first, count, clock=clock{parameters}):\n"
        "    samples = []\n"
        "    for i in range(first, first + count):\n"
        f"{body}"
        "    return samples\n"
    )
    scope: dict[str, Any] = {"clock": time.perf_counter_ns, **names}
    exec(compile(source, f"<timed: {statement.strip()[:60]}>", "exec"), scope)
    # Taken out, so that a loop and what it names die by reference count, handles among them.
    loop: Loop = scope.pop("loop")
    return loop


@cache
def clock_overhead_ns() -> float:
    """Return what two readings of the host clock cost in a timed loop with nothing between them."""
    return percentile(timed_loop("pass", {})(0, 5000), 50)


class Contender(Protocol):
    """Whatever can be sampled beside others."""

    @property
    def name(self) -> str:
        """Who it is, as the tables show it."""
        ...

    def sample(self, first: int, count: int) -> list[float]:
        """Return ``count`` host times in microseconds, the clock's own cost taken off."""
        ...


@dataclass
class PythonCall:
    """A contender written in Python: a statement as its users write it.

    ``divide`` is how many calls one statement makes; the sample is the time of one of them.
    """

    name: str
    statement: str
    names: Mapping[str, Any]
    before: str = ""
    after: str = ""
    divide: int = 1
    _loop: Loop = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._loop = timed_loop(self.statement, self.names, before=self.before, after=self.after)

    def sample(self, first: int, count: int) -> list[float]:
        """Return host microseconds a call."""
        overhead = clock_overhead_ns()
        return [max(ns - overhead, 0.0) / (1000 * self.divide) for ns in self._loop(first, count)]


@dataclass
class NativeCall:
    """A contender that times itself, in C: ``loop(first, count)`` returns its nanoseconds."""

    name: str
    loop: Callable[[int, int], Sequence[int]]
    overhead_ns: float
    divide: int = 1

    def sample(self, first: int, count: int) -> list[float]:
        """Return host microseconds a call."""
        return [
            max(ns - self.overhead_ns, 0.0) / (1000 * self.divide) for ns in self.loop(first, count)
        ]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the garbage collector out of the timed blocks, as `timeit` does."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def interleave(
    contenders: Sequence[Contender],
    *,
    samples: int,
    block: int = 10,
    discard: int = 2,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Summary]:
    """Sample all contenders in turn and return the summary of each, by name.

    Args:
        contenders: who takes part; their names must differ.
        samples: how many samples to keep of each, at least.
        block: how many calls a contender makes before the next one's turn.
        discard: how many at the head of each block are made but not kept.
        advance: called once a round, for a progress bar; there are :func:`rounds` of them.

    The order of the turns rotates, so that nobody always follows the same neighbour.
    """
    kept: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    if len(kept) != len(contenders):
        raise ValueError(
            f"contenders: expected different names, came {[c.name for c in contenders]}"
        )
    with quiet():
        for turn in range(rounds(samples, block, discard)):
            shift = turn % max(len(contenders), 1)
            for contender in [*contenders[shift:], *contenders[:shift]]:
                kept[contender.name] += contender.sample(turn * block, block)[discard:]
            advance()
    return {name: summarize(values) for name, values in kept.items()}


def rounds(samples: int, block: int = 10, discard: int = 2) -> int:
    """Return how many rounds :func:`interleave` makes."""
    if not 0 <= discard < block:
        raise ValueError(
            f"discard: expected 0 to {block - 1} of a block of {block}, came {discard}"
        )
    return math.ceil(samples / (block - discard))


Setting = TypeVar("Setting")
Made = TypeVar("Made")
Maker = tuple[str, Callable[[], Made]]  # a contender's name, and what makes it


@dataclass(frozen=True)
class Part(Generic[Setting, Made]):
    """Some contenders that are measured alike.

    Attributes:
        name: the case's name in the rows.
        makers: makes its contenders, given what they share.
        samples: to keep of each, at least.
        block: samples of one contender in a row, of which ``discard`` are thrown away.
        baseline: the metric that ratios are to.
    """

    name: str
    makers: Callable[[Setting], Sequence[Maker[Made]]]
    samples: int
    block: int
    discard: int
    baseline: str

    @property
    def rounds(self) -> int:
        """How many rounds it takes."""
        return rounds(self.samples, self.block, self.discard)


# --- rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One measured number: a line of a results file.

    ``case`` is ``"what: size"``, ``metric`` who did it or what was counted. ``unit`` says whose
    time it is (``host us``, ``device us``). ``baseline`` names the metric of the same case that
    ``ratio`` divides by.
    """

    case: str
    metric: str
    value: float
    unit: str
    p20: float
    p80: float
    n: int
    baseline: str | None = None
    ratio: float | None = None


def make_rows(
    case: str, summaries: Mapping[str, Summary], *, unit: str = HOST_US, baseline: str | None = None
) -> list[Row]:
    """Return one row for each contender; ratios only where the baseline took part."""
    floor = summaries.get(baseline) if baseline is not None else None
    return [
        Row(
            case=case,
            metric=name,
            value=_rounded(summary.value),
            unit=unit,
            p20=_rounded(summary.p20),
            p80=_rounded(summary.p80),
            n=summary.n,
            baseline=baseline if floor else None,
            ratio=_rounded(summary.value / floor.value) if floor and floor.value > 0 else None,
        )
        for name, summary in summaries.items()
    ]


def write_results(
    bench: str, provenance: Mapping[str, Any], rows: Iterable[Row], *, folder: Path = RESULTS
) -> Path:
    """Write ``<folder>/<device>/<bench>.json`` and return its path."""
    path = folder / device_slug(str(provenance["device"])) / f"{bench}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"provenance": dict(provenance), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def read_results(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Return the provenance and the rows of a results file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return document["provenance"], [Row(**row) for row in document["rows"]]


def _rounded(value: float) -> float:
    """Round to four significant digits: more is noise, and makes differences hard to read."""
    return float(f"{value:.4g}")


# --- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pivot:
    """The rows of one question and one unit: a line a metric, a column a size."""

    title: str
    unit: str
    columns: list[str]
    lines: dict[str, list[Row | None]]


def pivots(rows: Iterable[Row]) -> list[Pivot]:
    """Group rows by ``what`` and unit; rows of different units never share a table."""
    groups: dict[tuple[str, str], list[tuple[str, Row]]] = {}
    for row in rows:
        what, _, size = row.case.partition(": ")
        groups.setdefault((what, row.unit), []).append((size, row))
    tables = []
    for (what, unit), members in groups.items():
        columns = list(dict.fromkeys(size for size, _ in members))
        lines: dict[str, list[Row | None]] = {}
        for size, row in members:
            lines.setdefault(row.metric, [None] * len(columns))[columns.index(size)] = row
        tables.append(Pivot(what, unit, columns, lines))
    return tables


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    text = f"{row.value:.4g}"
    return f"{text} ({row.ratio:.2f}x)" if row.ratio is not None else text


def markdown(path: Path) -> str:
    """Return the tables of a results file as Markdown, for the generated documentation.

    One table for each question and unit, medians in the cells, in brackets the ratio to the
    baseline; under them where the numbers come from.
    """
    source, rows = read_results(path)
    parts = []
    for pivot in pivots(rows):
        baselines = {row.baseline for line in pivot.lines.values() for row in line if row}
        named = ", ".join(sorted(name for name in baselines if name))
        against = f", in brackets the ratio to {named}" if named else ""
        columns = [column or "value" for column in pivot.columns]
        table = [["", *columns], ["---", *["---:"] * len(columns)]]
        table += [[metric, *map(_cell, line)] for metric, line in pivot.lines.items()]
        parts.append(
            f"**{pivot.title}** ({pivot.unit}, median{against})\n\n"
            + "\n".join("| " + " | ".join(cells) + " |" for cells in table)
        )
    packages = ", ".join(f"{name} {version}" for name, version in source["packages"].items())
    origin = (
        f"{source['device']}, driver {source['driver']}, CUDA {source['cuda']}, "
        f"Python {source['python']}, {packages}; {source['date'][:10]}."
    )
    absent = "; ".join(f"{name}: {why}" for name, why in source.get("absent", {}).items())
    parts.append(origin + (f" Absent: {absent}." if absent else ""))
    return "\n\n".join(parts) + "\n"


def print_tables(console: Console, rows: Iterable[Row]) -> None:
    """Print every table, with the spread of each median."""
    for pivot in pivots(rows):
        table = Table(title=f"{pivot.title} ({pivot.unit})", title_justify="left")
        table.add_column("")
        for column in pivot.columns:
            table.add_column(column or "value", justify="right")
        for metric, line in pivot.lines.items():
            cells = [
                f"{_cell(row)} [dim]{row.p20:.3g}..{row.p80:.3g}[/dim]" if row else ""
                for row in line
            ]
            table.add_row(metric, *cells)
        console.print(table)


def progress_bar(console: Console) -> Progress:
    """Return a progress bar of rounds."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        # Drawn between the rounds only: a thread that draws would take the interpreter from a
        # contender in the middle of a sample.
        auto_refresh=False,
    )


# --- budgets -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """What a contender may cost: at most ``limit`` times the floor, perhaps less than all peers."""

    what: str
    case: str
    metric: str
    limit: float
    ahead_of_peers: bool = False


@dataclass(frozen=True)
class Verdict:
    """A budget beside what was measured; ``met`` is None where what to judge it by is missing."""

    budget: Budget
    floor: float | None
    peer: str | None
    peer_value: float | None
    value: float | None
    ratio: float | None
    met: bool | None


def judge(rows: Iterable[Row], budgets: Iterable[Budget], *, floor: str, own: str) -> list[Verdict]:
    """Hold budgets against rows.

    Args:
        rows: what was measured.
        budgets: what was promised.
        floor: the metric that limits are multiples of.
        own: how the names of our own contenders begin; everybody else but the floor is a peer.
    """
    cases: dict[str, dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(row.case, {})[row.metric] = row
    verdicts = []
    for budget in budgets:
        metrics = cases.get(budget.case, {})
        base, ours = metrics.get(floor), metrics.get(budget.metric)
        peers = [row for name, row in metrics.items() if name != floor and not name.startswith(own)]
        best = min(peers, key=lambda row: row.value, default=None)
        ratio = ours.value / base.value if ours and base and base.value > 0 else None
        met: bool | None = None
        if ours is not None and ratio is not None and not (budget.ahead_of_peers and best is None):
            met = ratio <= budget.limit
            if budget.ahead_of_peers and best is not None:
                met = met and ours.value < best.value
        verdicts.append(
            Verdict(
                budget=budget,
                floor=base.value if base else None,
                peer=best.metric if best else None,
                peer_value=best.value if best else None,
                value=ours.value if ours else None,
                ratio=ratio,
                met=met,
            )
        )
    return verdicts


def print_verdicts(
    console: Console, verdicts: Iterable[Verdict], *, floor: str, own: str, unit: str = HOST_US
) -> None:
    """Print the table of budgets: floor, best peer, ours, ratio, met or not."""
    table = Table(title=f"Budgets ({unit})", title_justify="left")
    for column in ("what", floor, "best peer", own, "ratio", "budget", "met"):
        table.add_column(column, justify="left" if column in ("what", "best peer") else "right")
    words = {True: "[green]yes[/green]", False: "[red]no[/red]", None: "not judged"}
    for verdict in verdicts:
        ahead = " and ahead of peers" if verdict.budget.ahead_of_peers else ""
        table.add_row(
            verdict.budget.what,
            _number(verdict.floor),
            f"{verdict.peer} {_number(verdict.peer_value)}" if verdict.peer else "-",
            _number(verdict.value),
            f"{verdict.ratio:.2f}" if verdict.ratio is not None else "-",
            f"{verdict.budget.limit:.2f} x {floor}{ahead}",
            words[verdict.met],
        )
    console.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
