"""A decoder of the fused kernels: the same state and builds, and programmatic edges."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

import graphkit as gk
from graphkit.device_array import DeviceArray

from ..launch import KernelLaunch
from ..llama.checkpoint import Checkpoint
from ..llama.decoder import BUILDS, Build, Decode, Decoder, add_launches, stream_of
from ..llama.model import DecodeLaunch
from .loop_on import check_steps, loop_on
from .model import FusedLlama
from .next_token import next_token
from .row_ends import RowEnds
from .tensor_step import TensorStep

__all__ = ["FusedDecoder"]


class FusedDecoder(Decoder):
    """A Llama in bfloat16 whose decode step is a chain of fused kernels.

    It has the state of a :class:`~graphkit.kernels.llama.Decoder` and two builds more:
    ``"programmatic"``, a graph whose edges let each kernel fetch its weights while the one ahead
    of it ends, and ``"loop"``, a graph that makes all steps of a generation in one launch
    (:meth:`build`). The last kernel of a step leaves the embedding of the next token where the
    first of the next step reads it, so a position that is set by hand needs :meth:`embed`.

    Args:
        checkpoint: configuration and tensors; the matrices are bfloat16. Those in device memory
            are used where they lie, arrays on the host are copied.
        batch: number of sequences, decoded side by side: 1 to 64. One and two are multiplied in
            float32; more have their activations rounded to float16 (:class:`TensorStep`).
        max_len: places of the cache in tokens, prompt included; at most the model's
            ``max_position_embeddings``, which is the default.
        temperature: 0 takes the most likely token; above, tokens are drawn.
        top_k: draw among so many most likely tokens; 0 means all.
        top_p: draw among the most likely tokens that have this share of the probability.
        page: places of a page of the caches; 0 for caches without pages. ``llama.block_table``
            says which pages a sequence has, and may change between launches.

    Attributes:
        length_limit: int32 [batch], tokens at which a row ends in the loop, its prompt included;
            ``max_len`` until it is set to something else.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of range, extents or a dtype that the kernels do not take, or
            more memory than is free; before anything is allocated.
    """

    builds: ClassVar[tuple[Build, ...]] = (*BUILDS, "programmatic", "loop")
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
        self._page = page
        super().__init__(
            checkpoint,
            batch=batch,
            max_len=max_len,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        self._own_stream = gk.Stream()
        self.length_limit = gk.asarray(np.full(batch, self.max_len, np.int32))
        ends = self.config.eos_token_ids
        self._row_ends = RowEnds(self.length_limit, gk.asarray(ends, np.int32) if ends else None)
        self._left = gk.zeros(1, np.int32)

    @property
    def k_cache(self) -> Sequence[DeviceArray]:
        """The keys of each layer: see :class:`FusedLlama`."""
        return self.llama.k_cache

    @property
    def v_cache(self) -> Sequence[DeviceArray]:
        """The values of each layer, as :attr:`k_cache`."""
        return self.llama.v_cache

    def _model(self, checkpoint: Checkpoint, batch: int, max_len: int | None) -> FusedLlama:
        if batch > TensorStep.most_rows:
            raise ValueError(f"batch: expected 1 to {TensorStep.most_rows} sequences, came {batch}")
        return FusedLlama(checkpoint, rows=batch, max_len=max_len, page=self._page)

    def _list_launches(self) -> tuple[DecodeLaunch, ...]:
        return self._chain()

    def _chain(self, row_ends: RowEnds | None = None) -> tuple[DecodeLaunch, ...]:
        launches = self.llama.launches(self.position)

        def add(name: str, launch: KernelLaunch, early: bool) -> None:
            launches.append(DecodeLaunch(name, launch, (len(launches) - 1,), early))

        best_value: object | None = None
        best_index: object | None = None
        if self.temperature == 0.0:
            best_value, best_index = self.llama.step.best
        else:
            add("choose", self._choice(), early=False)
        state = self.next_token, self.tokens, self.prompt_len, self.position
        append = next_token(
            *(*state, self.llama.table, self.llama.step.x),
            best_value=best_value,
            best_index=best_index,
            scaled=self.llama.step.scaled,
            row_ends=row_ends,
        )
        add("next_token", append, early=True)
        return tuple(launches)

    def start(self, *prompts: Sequence[int], seed: int = 0) -> None:  # noqa: D102 - as inherited
        super().start(*prompts, seed=seed)
        self.embed()

    def build(
        self, build: Build, stream: gk.Stream | None = None, *, steps: int | None = None
    ) -> Decode:
        """Make the launches of a decode step launchable as one, or all steps of a generation.

        ``"loop"`` is a graph with a while node around the step, whose edges are programmatic. One
        launch of it makes steps until every row has ended: it chose one of the configuration's
        ``eos_token_ids``, or has as many tokens as ``length_limit`` says. A row that has ended
        keeps its tokens, its position and its ``next_token`` while others go on. The host does
        nothing in between. A launch with all rows at their end makes no step.

        Args:
            build: one of :attr:`builds`; the others as :meth:`Decoder.build` says.
            stream: the stream to launch on; a new one by default.
            steps: of the loop alone: how many a launch makes at most.

        Raises:
            TypeError: a stream that is not graphkit's, or ``steps`` that are no int.
            ValueError: another build, or ``steps`` out of range or without a loop.
        """
        if build != "loop":
            if steps is not None:
                raise ValueError(f"steps: expected None but for the loop, came {steps}")
            return super().build(build, stream)
        if steps is not None:
            check_steps(steps)
        stream = stream_of(stream)
        graph = gk.Graph()
        handle = graph.conditional_handle()
        state = self.tokens, self.prompt_len, self.position, self._left, self._row_ends
        begin = loop_on(handle, *state, begins=True, steps=steps).add_to(graph)
        with graph.while_(handle, deps=begin) as body:
            launches = self._chain(self._row_ends)
            again = DecodeLaunch("loop_on", loop_on(handle, *state), (len(launches) - 1,), True)
            add_launches(body, (*launches, again), programmatic=True)
        exec_ = graph.instantiate()
        exec_.upload(stream)
        return Decode(build, self, stream, graph, exec_.launcher(stream), exec_, body)

    def embed(self) -> None:
        """Look up the token at each position, as the first kernel of a step needs it.

        Waits for the device, so it must not be called during a capture. :meth:`start` has done
        it; whoever sets positions or tokens by hand calls it behind that.
        """
        self.llama.embed(self.tokens, self.position).launch(self._own_stream)
        self._own_stream.synchronize()
