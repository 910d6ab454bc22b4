"""Draw a decode step by kernel, against its floor and against PyTorch, from the results files.

    python3 bench/decode_picture.py [--results bench/results/nvidia-h200] [--batch 1]
                                    [--context 128] [--out docs/pictures/decode-step.svg]

Needs matplotlib, and the results of `decode_kernels.py`; those of `decode.py` add the peers.
"""

# Not a benchmark: it draws results that are there.

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from decode_kernels import PLAIN, PROGRAMMATIC, STEP
from measure import DEVICE_US, Row, read_results
from provenance import RESULTS, ROOT

OTHERS = "between the kernels"
# Of peers only those that a reader may ask for; Hugging Face's eager one would dwarf the rest.
PEERS = (
    "PyTorch compiled layers in one CUDA graph",
    "PyTorch compile max-autotune",
    "PyTorch CUDA graph",
    "Hugging Face compile max-autotune",
)


@dataclass(frozen=True)
class Bar:
    """A line of the picture: parts in microseconds, one behind the other.

    Attributes:
        label: what it is.
        parts: microseconds by kind of kernel, in the order of a step.
    """

    label: str
    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Microseconds of all parts."""
        return sum(self.parts.values())


def kernel_bars(rows: Sequence[Row], size: str) -> list[Bar]:
    """Return the floor and the step with both kinds of edges, by kernel.

    A kernel's part is its time in a graph of its like, times its launches in a step. What the step
    takes beyond their sum is a part of its own; where it takes less, since attention's caches then
    came from L2 or kernels overlapped, the parts are shown as they are.
    """
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        what, _, of = row.case.partition(": ")
        if of == size:
            found.setdefault(what, {})[row.metric] = row.value
    counts = found.get("launches in a step")
    if not counts:
        raise ValueError(f"size: expected one that the results have, came {size!r}")

    def of_step(values: dict[str, float]) -> dict[str, float]:
        return {
            kind: values[kind] * count
            for kind, count in counts.items()
            if kind != STEP and kind in values
        }

    bars = [Bar("floor: bytes at the read bandwidth", of_step(found["floor of a kernel"]))]
    for edges in (PLAIN, PROGRAMMATIC):
        took = found[f"a kernel, {edges}"]
        parts = of_step(took)
        beyond = took[STEP] - sum(parts.values())
        if beyond > 0:
            parts[OTHERS] = beyond
        bars.append(Bar(f"graphkit, {edges}: {took[STEP]:.0f} us measured", parts))
    return bars


def peer_bars(rows: Sequence[Row], batch: int, context: int) -> list[Bar]:
    """Return PyTorch's contenders of a size, the fastest first."""
    case = f"a step at context {context}, on the device: batch {batch}"
    bars = [
        Bar(row.metric, {row.metric: row.value})
        for row in rows
        if row.case == case and row.unit == DEVICE_US and row.metric in PEERS
    ]
    return sorted(bars, key=lambda bar: bar.total)


def draw(bars: Sequence[Bar], peers: Sequence[Bar], title: str, out: Path) -> None:
    """Draw the bars and write the picture; the suffix says in which format."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "graphkit"  # the same file from the same numbers
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(kind for bar in bars for kind in bar.parts))
    palette = pyplot.get_cmap("tab10")
    colours = {kind: palette(index % 10) for index, kind in enumerate(kinds)}
    colours[OTHERS] = (0.85, 0.85, 0.85, 1.0)
    every = [*bars, *peers]
    figure, axes = pyplot.subplots(figsize=(10, 1.6 + 0.5 * len(every)), layout="constrained")
    for at, bar in enumerate(every):
        left = 0.0
        for kind, us in bar.parts.items():
            colour = colours.get(kind, (0.6, 0.6, 0.6, 1.0))
            axes.barh(at, us, left=left, color=colour, edgecolor="white", linewidth=0.5)
            left += us
        axes.text(left, at, f" {bar.total:.0f}", va="center", fontsize=9)
    axes.axvline(bars[0].total, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(every)), [bar.label for bar in every], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * max(bar.total for bar in every))
    axes.set_xlabel("microseconds on the device")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colours[kind]) for kind in kinds]
    figure.legend(handles, kinds, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS / "nvidia-h200")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures" / "decode-step.svg")
    chosen = parser.parse_args(arguments)
    source, rows = read_results(chosen.results / "decode_kernels.json")
    bars = kernel_bars(rows, f"batch {chosen.batch}, context {chosen.context}")
    whole = chosen.results / "decode.json"
    peers = (
        peer_bars(read_results(whole)[1], chosen.batch, chosen.context) if whole.is_file() else []
    )
    title = (
        f"A decode step of a Llama 3.2 1B on an {source['device']}, batch {chosen.batch}, "
        f"context {chosen.context}"
    )
    draw(bars, peers, title, chosen.out)
    print(chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
