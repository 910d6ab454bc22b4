"""What bench/relevance.py's contenders must find: requests, and the answers in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PATCH = 16
WIDTH = 256  # of the features
SIZES = (224, 384, 512)
K, TOTAL = 32, 4096
LEAST, MOST = 64, 400
SATURATION, INHIBITION = 0.01, 0.5
UNIT = 1 << 20  # of a weight

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Request:
    """What a request gives, on the host.

    Attributes:
        image: float32 [3, size, size].
        features: float32 [patches, WIDTH].
        query: float32 [WIDTH].
    """

    image: Floats
    features: Floats
    query: Floats

    @classmethod
    def draw(cls, size: int, seed: int) -> Request:
        """Draw a request whose patches differ in contrast, entropy and similarity."""
        rng = np.random.default_rng((size, seed))
        patches = (size // PATCH) ** 2
        image = rng.random((3, size, size)) * np.linspace(0.1, 1.0, size)
        query = rng.standard_normal(WIDTH)
        features = rng.standard_normal((patches, WIDTH)) * rng.uniform(0.5, 3.0, (patches, 1))
        features += rng.random((patches, 1)) * query
        found = (array.astype(np.float32) for array in (image, features, query))
        return cls(*found)

    @property
    def side(self) -> int:
        """Patches of a row, and of a column."""
        return int(self.image.shape[1]) // PATCH


def _windows(values: Doubles) -> Doubles:
    """Return for each patch the sum over it and its up to eight neighbours."""
    padded = np.pad(values, 1)
    rows, columns = values.shape
    total = np.zeros_like(values)
    for y in range(3):
        for x in range(3):
            total += padded[y : y + rows, x : x + columns]
    return total


def balance_of(request: Request) -> Doubles:
    """Return the balance of each patch."""
    side = request.side
    features = request.features.astype(np.float64)
    query = request.query.astype(np.float64)
    shares = np.exp(features - features.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    entropy = -(shares * np.log(shares)).sum(axis=1).reshape(side, side)
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(query)
    similarity = (features @ query / norms).reshape(side, side)

    luminance = np.tensordot([0.2126, 0.7152, 0.0722], request.image.astype(np.float64), 1)
    patches = luminance.reshape(side, PATCH, side, PATCH)
    mean, variance = patches.mean(axis=(1, 3)), patches.var(axis=(1, 3))
    count = _windows(np.ones((side, side)))
    around = _windows(mean) / count
    window = _windows(variance + mean**2) / count - around**2
    contrast = np.sqrt(variance) / (np.sqrt(window) + SATURATION)

    excitation = np.zeros((side, side))
    for score in (entropy, contrast, similarity):
        excitation += (score - score.mean()) / np.sqrt(score.var() + 1e-8)
    competitors = (_windows(excitation) - excitation) / (count - 1)
    found: Doubles = (excitation - INHIBITION * competitors).ravel()
    return found


def tokens_of(balances: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the tokens of selected patches: the TOTAL lowest levels, one token each."""
    raised = np.maximum(balances.astype(np.float32), np.float32(1e-3))
    units = np.maximum(np.rint(raised / raised.max() * np.float32(UNIT)), 1).astype(np.int64)
    steps = np.arange(LEAST + 1, MOST + 1, dtype=np.int64)
    levels = -(-steps * UNIT // units[:, None])
    keys = levels * len(units) + np.arange(len(units))[:, None]
    given = TOTAL - LEAST * len(units)
    chosen = np.argsort(keys, axis=None)[:given]
    rows = np.bincount(chosen // len(steps), minlength=len(units))
    return LEAST + rows


class WrongAnswerError(Exception):
    """A contender did something else than what is to be timed."""


@dataclass(frozen=True)
class Answer:
    """The balances of all patches in float64, and what an answer may differ by.

    Attributes:
        balance: of each patch.
        order: the patches, of the highest balance first.
    """

    balance: Doubles
    order: NDArray[np.intp]

    @classmethod
    def of(cls, request: Request) -> Answer:
        """Find the answer to a request."""
        balance = balance_of(request)
        return cls(balance, np.argsort(-balance, kind="stable"))

    def check_balance(self, who: str, found: NDArray[np.floating]) -> None:
        """Compare the balances of all patches.

        Raises:
            WrongAnswerError: when one is off by more than float32 explains.
        """
        off = float(np.abs(found - self.balance).max())
        if not off < 2e-3:
            raise WrongAnswerError(f"{who}: a balance is off by {off:.3g}")

    def check_selected(
        self, who: str, indices: NDArray[np.integer], tokens: NDArray[np.integer]
    ) -> None:
        """Compare the selected patches and their tokens.

        Raises:
            WrongAnswerError: when a patch is not among the best, or tokens are off by more than
                balances in float32 explain.
        """
        best = self.balance[self.order[:K]]
        if indices.min() < 0 or len(set(indices.tolist())) != K:
            raise WrongAnswerError(f"{who}: expected {K} different patches, came {indices}")
        off = float(np.abs(self.balance[indices] - best).max())
        if not off < 2e-3:
            raise WrongAnswerError(f"{who}: a selected balance is off by {off:.3g}")
        expected = tokens_of(best)
        if int(tokens.sum()) != TOTAL or int(np.abs(tokens - expected).max()) > 2:
            raise WrongAnswerError(f"{who}: expected about {expected}, came {tokens}")
