"""Figures of an exec pool made by hand, for what only reads them."""

from dataclasses import replace

from graphkit.pool_policy import Reason, Step
from graphkit.pool_stats import KeyStats, PoolMemory, PoolStats, StepStats
from graphkit.signature import ArraySignature, Signature

NOTHING = PoolStats(
    requests=0,
    hits=0,
    steps={},
    fallbacks={},
    updates={},
    elements=0,
    padded_elements=0,
    captures=0,
    instantiates=0,
    evictions=0,
    failures=0,
    warm={},
    keys=(),
    memory=PoolMemory(arenas=0, execs=0, graphs=0, budget=None),
)


def signature(batch, extra=None, **values):
    arrays = (ArraySignature("x", (batch, 64), "float32"),)
    typed = tuple(sorted((name, (type(v).__name__, v)) for name, v in values.items()))
    return Signature(arrays, typed, extra)


def key_stats(key, **figures):
    names = ("hits", "eager", "captures", "moves", "instantiates", "evictions", "failures")
    nothing = dict.fromkeys((*names, "milliseconds", "nbytes"), 0)
    return KeyStats(key=key, **{**nothing, **figures})


def pool_stats(**figures):
    return replace(NOTHING, **figures)


# A pool that did some of everything.
BUSY = pool_stats(
    requests=1000,
    hits=960,
    steps={
        Step.LAUNCH: StepStats(900, 1.8),
        Step.RETARGET: StepStats(60, 3.0),
        Step.CAPTURE: StepStats(10, 50.0),
    },
    fallbacks={Reason.KEY_MISS: 20, Reason.OVER_MAX: 10},
    updates={"nodes": 50, "update": 9, "refused": 1},
    elements=75_000,
    padded_elements=100_000,
    captures=10,
    instantiates=4,
    evictions=2,
    failures=3,
    warm={Step.CAPTURE: StepStats(5, 1500.0)},
    keys=tuple(
        key_stats(
            signature(batch, causal=True),
            hits=hits,
            eager=1,
            moves=7,
            failures=failures,
            milliseconds=milliseconds,
            nbytes=nbytes,
        )
        for batch, hits, milliseconds, failures, nbytes in [
            (8, 600, 1.0, 0, 2400),
            (1, 300, 4.0, 0, 1 << 20),
            (64, 60, 9.0, 2, 0),
        ]
    ),
    memory=PoolMemory(arenas=1 << 20, execs=3 << 20, graphs=512, budget=16 << 20),
)
