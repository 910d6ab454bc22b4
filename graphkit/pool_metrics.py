"""The figures of exec pools for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from graphkit.cost_model import Move
from graphkit.pool_policy import Reason, Step

if TYPE_CHECKING:
    from graphkit.pool_stats import PoolStats

__all__ = ["HasStats", "PoolCollector"]


class HasStats(Protocol):
    """What a collector asks: an exec pool, or anything else that counts as one does."""

    def stats(self) -> PoolStats:
        """Return what was done so far."""
        ...


class _Metric(NamedTuple):
    name: str
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""


class _Sample(NamedTuple):
    name: str
    labels: tuple[str, ...]
    value: float


_COUNTERS = (
    _Metric("graphkit_pool_requests", "Requests, however answered."),
    _Metric("graphkit_pool_hits", "Requests answered by a graph that was there."),
    _Metric("graphkit_pool_fallbacks", "Requests answered eagerly, by reason.", ("reason",)),
    _Metric("graphkit_pool_captures", "Captures that requests led to, warm-up apart."),
    _Metric("graphkit_pool_capture_failures", "Captures that failed."),
    _Metric("graphkit_pool_evictions", "Execs closed to make room for others."),
    _Metric("graphkit_pool_updates", "Moves of an exec to another graph, by how.", ("how",)),
    _Metric("graphkit_pool_elements", "Elements of the arguments of requests, as they came."),
    _Metric("graphkit_pool_padded_elements", "The same as the graphs saw them, with padding."),
    _Metric(
        "graphkit_pool_steps",
        "Rungs of the ladder that were taken, by requests and by warm-up.",
        ("step", "phase"),
    ),
    _Metric(
        "graphkit_pool_step_seconds",
        "Host time of these rungs; of launches an estimate from a sample.",
        ("step", "phase"),
        "seconds",
    ),
)
_GAUGES = (
    _Metric("graphkit_pool_memory_bytes", "Device memory, by what has it.", ("part",), "bytes"),
    _Metric(
        "graphkit_pool_memory_budget_bytes",
        "What the device memory may be in all; absent without a limit.",
        unit="bytes",
    ),
    _Metric("graphkit_pool_hit_ratio", "Share of all requests so far that were hits."),
    _Metric("graphkit_pool_padding_ratio", "Share of all padded elements so far that is padding."),
)


class PoolCollector:
    """Exports the counts of exec pools through prometheus-client, by the label ``pool``.

    >>> prometheus_client.REGISTRY.register(PoolCollector({"decode": pool}))

    Each scrape calls ``stats()`` once a pool. Counters carry no key, whose number has no bound; a
    rate over time is left to PromQL: ``rate(graphkit_pool_hits_total[5m]) /
    rate(graphkit_pool_requests_total[5m])``.

    Args:
        pools: the pools by name. It is looked at in each scrape, so pools may come and go.

    Raises:
        ImportError: prometheus-client is not installed.
        TypeError: what ``pools`` holds are not pools by name.
    """

    def __init__(self, pools: Mapping[str, HasStats]) -> None:
        try:
            from prometheus_client import metrics_core
        except ImportError:
            raise ImportError(
                "PoolCollector: expected the package prometheus-client, it is not installed: "
                "pip install -e '.[metrics]' in the checkout"
            ) from None
        if not isinstance(pools, Mapping):
            raise TypeError(f"pools: expected a mapping of names, came {type(pools).__name__}")
        for name, pool in pools.items():
            if not isinstance(name, str):
                raise TypeError(f"pools: expected names, came {name!r}")
            if not callable(getattr(pool, "stats", None)):
                came = type(pool).__name__
                raise TypeError(f"pools[{name!r}]: expected a pool with stats(), came {came}")
        self._metrics_core: Any = metrics_core
        self._pools = pools
        self._lock = Lock()  # scrapes come from the threads of a server
        self._counted: dict[str, dict[tuple[str, tuple[str, ...]], float]] = {}

    def describe(self) -> Iterator[Any]:
        """Yield the metrics without values; a registry asks this when it registers."""
        yield from self._families().values()

    def collect(self) -> Iterator[Any]:
        """Yield the metrics as they are now; a registry asks this in each scrape."""
        families = self._families()
        with self._lock:
            pools = dict(self._pools)
            for gone in self._counted.keys() - pools.keys():
                del self._counted[gone]
            for name, pool in pools.items():
                stats = pool.stats()
                for sample in [*self._rising(name, stats), *_gauge_samples(stats)]:
                    families[sample.name].add_metric([name, *sample.labels], sample.value)
        yield from families.values()

    def _families(self) -> dict[str, Any]:
        makers = [(metric, self._metrics_core.CounterMetricFamily) for metric in _COUNTERS]
        makers += [(metric, self._metrics_core.GaugeMetricFamily) for metric in _GAUGES]
        return {
            metric.name: make(
                metric.name, metric.help, labels=["pool", *metric.labels], unit=metric.unit
            )
            for metric, make in makers
        }

    def _rising(self, name: str, stats: PoolStats) -> list[_Sample]:
        """Return a pool's counters, none below what an earlier scrape saw.

        Prometheus takes a counter that fell for one that began anew and adds all of it to the
        rate. Here some do fall a little: times are estimated, and a request that is captured but
        then answered eagerly takes back a hit. Requests fall only when the pool is another one.
        """
        before = self._counted.get(name, {})
        if stats.requests < before.get(("graphkit_pool_requests", ()), 0):
            before = {}
        risen = [
            sample._replace(value=max(sample.value, before.get(sample[:2], 0)))
            for sample in _counter_samples(stats)
        ]
        self._counted[name] = {sample[:2]: sample.value for sample in risen}
        return risen


def _counter_samples(stats: PoolStats) -> list[_Sample]:
    totals = {
        "requests": stats.requests,
        "hits": stats.hits,
        "captures": stats.captures,
        "capture_failures": stats.failures,
        "evictions": stats.evictions,
        "elements": stats.elements,
        "padded_elements": stats.padded_elements,
    }
    found = [_Sample(f"graphkit_pool_{name}", (), value) for name, value in totals.items()]
    # Zeros too: a series that begins with its first event has no rate at that event.
    for reason in Reason:
        count = stats.fallbacks.get(reason, 0)
        found.append(_Sample("graphkit_pool_fallbacks", (reason.value,), count))
    for how in dict.fromkeys([*map(str, Move), "refused", *stats.updates]):
        found.append(_Sample("graphkit_pool_updates", (how,), stats.updates.get(how, 0)))
    for phase, steps in (("request", stats.steps), ("warm", stats.warm)):
        for step in Step:
            labels = (step.value, phase)
            taken = steps.get(step)
            count, ms = (taken.count, taken.milliseconds) if taken else (0, 0.0)
            found.append(_Sample("graphkit_pool_steps", labels, count))
            found.append(_Sample("graphkit_pool_step_seconds", labels, ms / 1e3))
    return found


def _gauge_samples(stats: PoolStats) -> Iterator[_Sample]:
    memory = stats.memory
    for part in ("arenas", "execs", "graphs"):
        yield _Sample("graphkit_pool_memory_bytes", (part,), getattr(memory, part))
    if memory.budget is not None:
        yield _Sample("graphkit_pool_memory_budget_bytes", (), memory.budget)
    yield _Sample("graphkit_pool_hit_ratio", (), stats.hit_rate)
    yield _Sample("graphkit_pool_padding_ratio", (), stats.padding_ratio)
