"""The requests of bench/pipeline.py: a three-layer MLP, its inputs, and what must come out.

Every input is another one, so that a result tells which request it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from graphkit.kernels import linear
from numpy.typing import NDArray

import graphkit as gk

LAYERS = 3
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Size:
    """Requests of one size.

    Attributes:
        batch: rows of a request.
        width: floats of a row, in and out of every layer.
        burst: requests without a wait in between, each with an input and an output of its own.
        bursts: to keep of each contender.
    """

    batch: int
    width: int
    burst: int
    bursts: int

    @property
    def name(self) -> str:
        """How the rows name it."""
        return f"{self.batch} x {self.width}"

    @property
    def shape(self) -> tuple[int, int]:
        """Of a request's array."""
        return self.batch, self.width


class Network:
    """The weights, on the host and for graphkit.

    Attributes:
        weights: (weight, bias) of each layer as torch.nn.Linear has them.
    """

    def __init__(self, width: int) -> None:
        random = np.random.default_rng(width)
        bound = (6 / width) ** 0.5  # keeps values of the same size through a layer with ReLU
        self.weights: list[tuple[Floats, Floats]] = [
            (
                random.uniform(-bound, bound, (width, width)).astype(np.float32),
                random.uniform(-0.1, 0.1, width).astype(np.float32),
            )
            for _ in range(LAYERS)
        ]
        self._device = [(gk.asarray(weight), gk.asarray(bias)) for weight, bias in self.weights]

    def __call__(self, x: Any, y: Any, first: Any, second: Any, stream: object) -> None:
        """Launch the three layers; ``first`` and ``second`` hold what lies between them."""
        arrays = (x, first, second, y)
        for place, (weight, bias) in enumerate(self._device):
            last = place == LAYERS - 1
            launch = linear(arrays[place], weight, bias, arrays[place + 1], relu=not last)
            launch.launch(stream)

    def expected(self, xs: Floats) -> NDArray[np.float64]:
        """Return what must come out, computed in float64."""
        values = xs.astype(np.float64)
        for place, (weight, bias) in enumerate(self.weights):
            values = values @ weight.T.astype(np.float64) + bias
            if place < LAYERS - 1:
                np.maximum(values, 0, out=values)
        return values

    def module(self, torch: Any) -> Any:
        """Return the same network as a torch.nn.Sequential on the device."""
        layers: list[Any] = []
        for weight, bias in self.weights:
            layer = torch.nn.Linear(*weight.shape[::-1])
            layer.weight.data = torch.from_numpy(weight)
            layer.bias.data = torch.from_numpy(bias)
            layers += [layer, torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1]).cuda()


class Requests:
    """The inputs of a burst in pinned memory, room for its results, and what they must be.

    Attributes:
        xs: an array a request.
        ys: an array a request, views of ``results``.
    """

    def __init__(self, size: Size, network: Network) -> None:
        shape = (size.burst, *size.shape)
        self.inputs = gk.empty_pinned(shape)
        self.results = gk.empty_pinned(shape)
        np.random.default_rng(1).standard_normal(shape, np.float32, out=self.inputs)
        self.xs, self.ys = list(self.inputs), list(self.results)
        self._right = network.expected(self.inputs.reshape(-1, size.width)).reshape(shape)
        self._size = size

    def expect_close(self, name: str, results: Floats, *, first: int = 0) -> None:
        """Compare results, from a request on, with those in float64.

        Raises:
            WrongResultError: when one is another.
        """
        right = self._right[first : first + len(results)]
        wrong = np.abs(results - right) > 1e-4 + 1e-4 * np.abs(right)
        bad = np.flatnonzero(wrong.any(axis=(1, 2)) | np.isnan(results).any(axis=(1, 2)))
        if bad.size:
            raise WrongResultError(
                f"{name}: {bad.size} of {len(results)} results are wrong, the first of request "
                f"{first + bad[0]}"
            )

    def checker(self, name: str, results: Floats) -> Callable[[], None]:
        """Return what checks a burst's results: with float64 once, then for the same bits.

        The results are overwritten with NaN, so that none is taken for one of the next burst.
        """
        known: list[Floats] = []

        def check() -> None:
            if not known or not np.array_equal(results.view(np.int32), known[0].view(np.int32)):
                self.expect_close(name, results)
                known[:] = [results.copy()]
            results.fill(np.nan)

        results.fill(np.nan)
        return check


class WrongResultError(Exception):
    """A contender did something else than what is to be timed."""
