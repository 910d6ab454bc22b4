"""graphkit's contender of bench/decode.py whose batch may change: a step through an ExecPool.

The rows of a step are said anew each time, so positions and tokens lie elsewhere at every call, and
the pool points its copies at them. What the others have baked in: rows, slots, buffers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from decode_model import Answer, Model, Size
from decode_own import Maker, OwnFamily
from decode_setting import OWN_BOUND, DecodeSetting, Stepper
from exec_pool_setting import OWN, UnavailableError

import graphkit as gk

POOL = f"{OWN} ExecPool, rows said anew"


class Pooled(OwnFamily):
    """A batched decoder for one batch, and the pool of its steps."""

    def __init__(self, setting: DecodeSetting, model: Model, batch: int) -> None:
        try:
            from graphkit.kernels.decode import FusedBatchedDecoder
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        super().__init__(setting, model, batch)
        self.decoder: Any = FusedBatchedDecoder(
            self.checkpoint, max_batch=batch, max_len=model.places
        )
        sizes = gk.Buckets.powers_of_two(batch)
        self.pool = gk.ExecPool(
            self.decoder.step,
            dict.fromkeys(("tokens", "positions", "slots", "next_tokens"), sizes),
            outputs=["next_tokens"],
            fill=self.decoder.padding,
            strict=True,
            stream=setting.stream,
        )
        self._slots = gk.asarray(np.arange(batch, dtype=np.int32))
        # A step reads its tokens from one and leaves the next in the other, turn about.
        self._tokens = [gk.zeros(batch, np.int32) for _ in range(2)]
        every = np.repeat(np.arange(model.places, dtype=np.int32)[:, None], batch, axis=1)
        rows = gk.asarray(every)
        self._positions = [rows[position] for position in range(model.places)]
        self._at = 0

    def makers(self, size: Size) -> Sequence[Maker]:
        """Return the one who takes part."""
        return [(POOL, lambda: self._stepper(size))]

    def _stepper(self, size: Size) -> Stepper:
        return Stepper(
            POOL,
            self.step,
            lambda: self.start(size),
            self.place,
            lambda _: self.answer(size),
            OWN_BOUND,
        )

    def step(self) -> None:
        """Take a token of each row through the model."""
        at, tokens = self._at, self._tokens
        self.pool(
            tokens=tokens[at % 2],
            positions=self._positions[at],
            slots=self._slots,
            next_tokens=tokens[1 - at % 2],
        )
        self._at = at + 1

    def start(self, size: Size) -> None:
        """Put everything where the reference has it, and wipe what a step writes."""
        decoder, now = self.decoder, size.context % 2
        self.fill_caches(decoder.k_cache, decoder.v_cache)
        self._tokens[now].set(self.model.tokens[: self.batch])
        self._tokens[1 - now].set(np.full(self.batch, -1, np.int32))
        logits = decoder.logits(self.batch)
        logits.set(np.full(logits.shape, np.nan, np.float32))
        self.place(size.context)

    def place(self, position: int) -> None:
        """Let the next step be that of a position."""
        self._at = position

    def answer(self, size: Size) -> Answer:
        """Return what a step left behind."""
        decoder, chosen = self.decoder, self._tokens[1 - size.context % 2]
        caches = decoder.k_cache, decoder.v_cache
        return self.answer_of(decoder.logits(self.batch), chosen, *caches, size.context)

    def close(self) -> None:
        """Give back graphs, caches and activations."""
        self.setting.drain()
        self.pool.close()
        del self.decoder
