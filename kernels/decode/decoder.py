"""A decoder of the fused kernels: the same state and builds, and programmatic edges."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import graphkit as gk
from graphkit.device_array import DeviceArray

from ..launch import KernelLaunch
from ..llama.checkpoint import Checkpoint
from ..llama.decoder import BUILDS, Build, Decoder
from ..llama.model import DecodeLaunch
from .model import FusedLlama
from .next_token import next_token
from .tensor_step import TensorStep

__all__ = ["FusedDecoder"]


class FusedDecoder(Decoder):
    """A Llama in bfloat16 whose decode step is a chain of fused kernels.

    It has the state of a :class:`~graphkit.kernels.llama.Decoder` and one build more,
    ``"programmatic"``: a graph whose edges let each kernel fetch its weights while the one ahead
    of it ends. The last kernel of a step leaves the embedding of the next token where the first
    of the next step reads it, so a position that is set by hand needs :meth:`embed`.

    Args:
        checkpoint: configuration and tensors; the matrices are bfloat16. Those in device memory
            are used where they lie, arrays on the host are copied.
        batch: number of sequences, decoded side by side: 1 to 64. One and two are multiplied in
            float32; more have their activations rounded to bfloat16, as the tensor cores take them.
        max_len: places of the cache in tokens, prompt included; at most the model's
            ``max_position_embeddings``, which is the default.
        temperature: 0 takes the most likely token; above, tokens are drawn.
        top_k: draw among so many most likely tokens; 0 means all.
        top_p: draw among the most likely tokens that have this share of the probability.
        page: places of a page of the caches; 0 for caches without pages. ``llama.block_table``
            says which pages a sequence has, and may change between launches.

    Raises:
        ValueError: an argument out of range, extents or a dtype that the kernels do not take, or
            more memory than is free; before anything is allocated.
    """

    builds: ClassVar[tuple[Build, ...]] = (*BUILDS, "programmatic")
    llama: FusedLlama

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        batch: int = 1,
        max_len: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        page: int = 0,
    ) -> None:
        if batch > TensorStep.most_rows:
            raise ValueError(f"batch: expected 1 to {TensorStep.most_rows} sequences, came {batch}")
        self._page = page
        self._own_stream = gk.Stream()
        super().__init__(
            checkpoint,
            batch=batch,
            max_len=max_len,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )

    @property
    def k_cache(self) -> Sequence[DeviceArray]:
        """The keys of each layer: see :class:`FusedLlama`."""
        return self.llama.k_cache

    @property
    def v_cache(self) -> Sequence[DeviceArray]:
        """The values of each layer, as :attr:`k_cache`."""
        return self.llama.v_cache

    def _model(self, checkpoint: Checkpoint, batch: int, max_len: int | None) -> FusedLlama:
        return FusedLlama(checkpoint, rows=batch, max_len=max_len, page=self._page)

    def _list_launches(self) -> tuple[DecodeLaunch, ...]:
        launches = self.llama.launches(self.position)

        def add(name: str, launch: KernelLaunch, waits: bool) -> None:
            launches.append(DecodeLaunch(name, launch, (len(launches) - 1,), waits))

        best_value: object | None = None
        best_index: object | None = None
        if self.temperature == 0.0:
            best_value, best_index = self.llama.step.best
        else:
            add("choose", self._choice(), waits=False)
        state = self.next_token, self.tokens, self.prompt_len, self.position
        append = next_token(
            *(*state, self.llama.table, self.llama.step.x),
            best_value=best_value,
            best_index=best_index,
            scaled=self.llama.step.scaled,
        )
        add("next_token", append, waits=True)
        return tuple(launches)

    def start(self, *prompts: Sequence[int], seed: int = 0) -> None:  # noqa: D102 - as inherited
        super().start(*prompts, seed=seed)
        self.embed()

    def embed(self) -> None:
        """Look up the token at each position, as the first kernel of a step needs it.

        Waits for the device, so it must not be called during a capture. :meth:`start` has done
        it; whoever sets positions or tokens by hand calls it behind that.
        """
        self.llama.embed(self.tokens, self.position).launch(self._own_stream)
        self._own_stream.synchronize()
