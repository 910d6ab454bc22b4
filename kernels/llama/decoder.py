"""The decode of a Llama, one token a launch: eager, captured, or as a graph built by hand."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

import graphkit as gk

from ..advance import advance
from ..argmax import argmax
from ..launch import KernelLaunch, instance, integer
from ..sample import check_draw, random_state, sample
from .checkpoint import Checkpoint
from .model import DecodeLaunch, Llama

__all__ = ["BUILDS", "Build", "Decode", "Decoder", "add_launches"]

Build = Literal["eager", "capture", "manual", "programmatic", "loop"]
BUILDS: tuple[Build, ...] = ("eager", "capture", "manual")


class Decoder:
    """A Llama with a static KV cache, whose whole state lies in device memory.

    Nothing in a launch changes from token to token: the position, the tokens, the lengths of the
    prompts and the random state are read and written by the kernels. So the same launches serve
    the prompt (its own next token is kept) and what follows (the chosen token is appended), and a
    graph of them is launched once a token without a parameter change.

    Args:
        checkpoint: configuration and tensors. Matrices in device memory (float32 or bfloat16,
            C-ordered) are used where they lie; arrays on the host are copied.
        batch: number of sequences, decoded side by side.
        max_len: places of the cache in tokens, prompt included; at most the model's
            ``max_position_embeddings``, which is the default.
        temperature: 0 takes the most likely token (argmax); above, tokens are drawn.
        top_k: draw among so many most likely tokens; 0 means all.
        top_p: draw among the most likely tokens that have this share of the probability.

    Attributes:
        builds: what :meth:`build` makes.
        llama: its weights, which another decoder may share, its activations and its caches.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of range, before anything is allocated.
    """

    builds: ClassVar[tuple[Build, ...]] = BUILDS

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        batch: int = 1,
        max_len: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> None:
        batch = integer("batch", batch)
        if batch < 1:
            raise ValueError(f"batch: expected 1 sequence or more, came {batch}")
        check_draw(temperature, top_k, top_p)
        self.llama = self._model(checkpoint, batch, max_len)
        self.config = checkpoint.config
        self.batch = batch
        self.max_len = max_len = self.llama.max_len
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._prompts: tuple[tuple[int, ...], ...] = ()

        self.tokens = gk.zeros((batch, max_len), np.int32)
        self.position = gk.zeros(batch, np.int32)
        self.prompt_len = gk.zeros(batch, np.int32)
        self.next_token = gk.zeros(batch, np.int32)
        self.random_state = gk.zeros((batch, 4), np.uint32)
        self.logits = self.llama.logits
        self.launches: tuple[DecodeLaunch, ...] = self._list_launches()

    def _model(self, checkpoint: Checkpoint, batch: int, max_len: int | None) -> Any:
        return Llama(checkpoint, rows=batch, max_len=max_len)

    def _choice(self) -> KernelLaunch:
        """Return the launch that chooses a token of each row by its logits."""
        if self.temperature == 0.0:
            return argmax(self.logits, self.next_token)
        return sample(
            self.logits,
            self.random_state,
            self.next_token,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )

    def _list_launches(self) -> tuple[DecodeLaunch, ...]:
        """List the kernel launches of a decode step, once for all builds."""
        launches = self.llama.launches(self.tokens, self.position)
        append = advance(self.tokens, self.next_token, self.prompt_len, self.position)
        for name, launch in (("choose", self._choice()), ("advance", append)):
            launches.append(DecodeLaunch(name, launch, (len(launches) - 1,)))
        return tuple(launches)

    def start(self, *prompts: Sequence[int], seed: int = 0) -> None:
        """Put prompts in the buffer and go back to position 0.

        Waits for the device, so it must not be called during a capture.

        Args:
            prompts: one per sequence of the batch, as token ids.
            seed: of the random state, 0 to 2**64 - 1; each sequence draws numbers of its own.

        Raises:
            TypeError: a token or the seed is no int.
            ValueError: a prompt is empty, does not fit the cache, or holds an unknown token; or
                the seed is out of range. Nothing has changed then.
        """
        if len(prompts) != self.batch:
            raise ValueError(
                f"prompts: expected {self.batch}, one per sequence, came {len(prompts)}"
            )
        first_state = random_state(seed, self.batch)
        tokens = np.zeros((self.batch, self.max_len), np.int32)
        for row, prompt in enumerate(prompts):
            check_prompt(prompt, self.max_len, self.config.vocab_size)
            tokens[row, : len(prompt)] = list(prompt)  # NumPy would parse bytes as a number
        self._prompts = tuple(tuple(prompt) for prompt in prompts)
        self.tokens.set(tokens)
        self.prompt_len.set([len(prompt) for prompt in prompts])
        self.position.set(np.zeros(self.batch, np.int32))
        self.random_state.set(first_state)

    def build(self, build: Build, stream: gk.Stream | None = None) -> Decode:
        """Make the launches of a decode step launchable as one.

        Args:
            build: ``"eager"`` launches every kernel from Python; ``"capture"`` captures those
                launches into a graph; ``"manual"`` adds a kernel node for each, with its
                dependencies, so that independent ones lie side by side; ``"programmatic"``
                likewise, with programmatic edges to every kernel that may begin early.
            stream: the stream to launch on; a new one by default.

        Raises:
            TypeError: a stream that is not graphkit's.
            ValueError: another build.
        """
        if build not in self.builds:
            raise ValueError(f"build: expected one of {', '.join(self.builds)}, came {build!r}")
        stream = stream_of(stream)
        if build == "eager":
            return Decode(build, self, stream, None, lambda: self._launch_eagerly(stream))
        if build == "capture":
            with gk.capture(stream) as graph:
                self._launch_eagerly(stream)
        else:
            graph = gk.Graph()
            add_launches(graph, self.launches, programmatic=build == "programmatic")
        exec_ = graph.instantiate()
        exec_.upload(stream)
        return Decode(build, self, stream, graph, exec_.launcher(stream), exec_)

    def _launch_eagerly(self, stream: gk.Stream) -> None:
        for entry in self.launches:
            entry.launch.launch(stream)


class Decode:
    """A decode step that can be launched, once per token.

    Attributes:
        build: how it was made.
        decoder: whose state the launches move on.
        stream: where they go.
        graph: the graph, None for the eager build.
        launch: enqueue one decode step, or all steps of a loop; returns without waiting.
        body: of a loop, the graph of a step; else None.
    """

    def __init__(
        self,
        build: Build,
        decoder: Decoder,
        stream: gk.Stream,
        graph: gk.Graph | None,
        launch: Callable[[], None],
        exec_: gk.GraphExec | None = None,
        body: gk.Graph | None = None,
    ) -> None:
        self.build = build
        self.decoder = decoder
        self.stream = stream
        self.graph = graph
        self.launch = launch
        self.exec = exec_
        self.body = body

    @property
    def node_count(self) -> int:
        """Nodes of the graph and of the loop's body; 0 for the eager build, which has none."""
        return sum(len(graph.nodes) for graph in (self.graph, self.body) if graph is not None)

    @property
    def launches_per_token(self) -> int:
        """Calls into CUDA's launch interface per token: one for each kernel, or 1 for a graph.

        0 for a loop, of which one launch makes all tokens.
        """
        if self.body is not None:
            return 0
        return len(self.decoder.launches) if self.graph is None else 1

    def last_tokens(self) -> NDArray[np.int32]:
        """Wait for the stream and return the token chosen last for every sequence."""
        self.stream.synchronize()
        return self.decoder.next_token.get()

    def close(self) -> None:
        """Destroy the executable graph, if there is one; the decoder stays usable."""
        if self.exec is not None:
            self.exec.close()


def stream_of(stream: gk.Stream | None) -> gk.Stream:
    """Return the stream that a build launches on: a new one for None.

    Raises:
        TypeError: it is not one of graphkit's, which can be waited for.
    """
    return gk.Stream() if stream is None else instance("stream", stream, gk.Stream)


def add_launches(
    graph: gk.Graph, launches: Sequence[DecodeLaunch], *, programmatic: bool = False
) -> None:
    """Add a kernel node for each launch, with its dependencies (cudaGraphAddKernelNode).

    Args:
        graph: a graph, or the body of a loop.
        launches: of a decode step.
        programmatic: whether the edges to kernels that may begin early are programmatic.
    """
    nodes: list[gk.Node] = []
    for entry in launches:
        early = programmatic and entry.early
        before = [nodes[index] for index in entry.after]
        node = entry.launch.add_to(graph, () if early else before)
        if early:
            for ahead in before:
                graph.add_dependency(ahead, node, programmatic=True)
        nodes.append(node)


def check_prompt(
    prompt: Sequence[int], max_len: int, vocab_size: int, argument: str = "prompt"
) -> None:
    """Check that a prompt can be decoded, before anything is launched.

    Raises:
        TypeError: it is no sequence, or a str, or a token is no int.
        ValueError: it is empty, leaves no place in a cache of ``max_len`` tokens for one more, or
            holds a token outside the vocabulary.
    """
    given: object = prompt
    if isinstance(given, str) or not isinstance(given, (Sequence, np.ndarray)):
        raise TypeError(f"{argument}: expected token ids or bytes, came {type(given).__name__}")
    if isinstance(given, np.ndarray) and given.ndim != 1:
        raise ValueError(f"{argument}: expected shape (tokens), came {given.shape}")
    if not len(prompt):
        raise ValueError(f"{argument}: expected at least one token, came an empty prompt")
    if len(prompt) >= max_len:
        raise ValueError(
            f"{argument}: expected at most {max_len - 1} tokens, since the cache holds {max_len} "
            f"with the one that follows, came {len(prompt)}"
        )
    for token in prompt:
        if not 0 <= integer(argument, token) < vocab_size:
            raise ValueError(f"{argument}: expected tokens below {vocab_size}, came {token}")
