"""Several prompts at once: a batch of sequences that join and leave, one decode step a token."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

import graphkit as gk
from graphkit.node_groups import check_state

from ..launch import instance, integer
from .batching import BatchedDecoder
from .checkpoint import Checkpoint, path_of
from .decoder import Decoder, check_prompt
from .generation import cache_places, encoded, repeat
from .tokenizer import TextStream, load_tokenizer

__all__ = ["Piece", "Served", "Step", "serve"]


class Step(Protocol):
    """Enqueues a decode step: a :meth:`BatchedDecoder.step` on a stream, or a pool of its execs."""

    def __call__(
        self,
        *,
        tokens: gk.DeviceArray,
        positions: gk.DeviceArray,
        slots: gk.DeviceArray,
        next_tokens: gk.DeviceArray,
    ) -> object:
        """Take int32 arrays of one element a sequence; the last one is written."""


class Piece(NamedTuple):
    """Text that came for one prompt.

    Attributes:
        prompt: the prompt's place among those that were given.
        text: what follows the text that came before.
    """

    prompt: int
    text: str


@dataclass(frozen=True)
class Served:
    """What came for one prompt, in the end.

    Attributes:
        prompt: its place among those that were given.
        text: all of it, the prompt left out.
        prompt_tokens: length of the prompt.
        tokens: the tokens that were appended.
        finished: ``"eos"`` where the model ended its text, ``"limit"`` where the tokens were up.
        steps: the decode steps that it took part in, counted from the first of all.
        same_tokens: whether the prompt alone gets the same; None when that was not asked.
    """

    prompt: int
    text: str
    prompt_tokens: int
    tokens: tuple[int, ...]
    finished: Literal["eos", "limit"]
    steps: range
    same_tokens: bool | None


def eager(decoder: BatchedDecoder) -> AbstractContextManager[Step]:
    """Serve without a graph: every step launches its kernels from Python, on a new stream."""
    return nullcontext(partial(decoder.step, stream=gk.Stream()))


def serve(
    model: str | Path,
    prompts: Sequence[str],
    tokens: int | Sequence[int],
    *,
    max_batch: int = 8,
    prepare: Callable[[BatchedDecoder], AbstractContextManager[Step]] = eager,
    compare: bool = True,
) -> Iterator[Piece | Served]:
    """Continue several prompts at once: pieces of text as they come, then what came for each.

    Every step takes one token of each sequence at hand: the next one of its prompt, or the one
    that was chosen last. A sequence that ends leaves its slot to the next that waits, so the batch
    shrinks only when none does. Each prompt gets the tokens that it gets alone, the likeliest ones.

    Everything that can be wrong with the arguments is found before this returns, hence before
    anything is launched.

    Args:
        model: a folder in Hugging Face format.
        prompts: the texts to continue.
        tokens: how many tokens to append, to all or to each; fewer when the model ends its text.
        max_batch: most sequences of a step; those beyond wait.
        prepare: returns what enqueues the steps of a decoder, as a context manager that is left at
            the end, by default :meth:`BatchedDecoder.step` as it is.
        compare: whether to decode each prompt alone too, and compare the tokens.

    Raises:
        CheckpointError: the model folder cannot be used.
        TypeError: one text where several are expected, or an argument of another type.
        ValueError: an empty prompt, one longer than the model's context, or an argument out of
            range.
    """
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts: expected a sequence of texts, came a {type(prompts).__name__}")
    if not prompts:
        raise ValueError("prompts: expected 1 text or more, came none")
    each: Sequence[object] = [tokens] * len(prompts)
    if isinstance(tokens, (Sequence, np.ndarray)) and not isinstance(tokens, (str, bytes)):
        each = list(tokens)
    limits = [integer("tokens", limit) for limit in each]
    max_batch = integer("max_batch", max_batch)
    check_state(compare, "compare")
    if not callable(prepare):
        raise TypeError(f"prepare: expected a function, came {type(prepare).__name__}")
    if len(limits) != len(prompts):
        raise ValueError(f"tokens: expected {len(prompts)}, one a prompt, came {len(limits)}")
    checkpoint = Checkpoint.load(path_of("model", model))
    config = checkpoint.config
    tokenizer = load_tokenizer(model, config.vocab_size)
    waiting: list[_Sequence] = []
    max_len = 0
    for place, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        ids = encoded(tokenizer, prompt, f"prompts[{place}]")
        context = config.max_position_embeddings
        check_prompt(ids, context, config.vocab_size, f"prompts[{place}]")
        max_len = max(max_len, cache_places(len(ids), limit, context))
        waiting.append(_Sequence(place, ids, len(ids), limit, tokenizer.stream()))
    rows = min(max_batch, len(prompts))  # no slots that nobody will have
    decoder = BatchedDecoder(checkpoint, max_batch=rows, max_len=max_len)

    def steps() -> Iterator[Piece | Served]:
        with instance("prepare(decoder)", prepare(decoder), AbstractContextManager) as step:
            yield from _take_steps(decoder, step, waiting)
        alone = _each_alone(decoder, waiting) if compare else [None] * len(waiting)
        for sequence, same in zip(waiting, alone, strict=True):
            yield sequence.served(same)

    return steps()


@dataclass
class _Sequence:
    """A prompt and what has come for it so far."""

    prompt: int
    tokens: list[int]  # the prompt's, then the chosen ones
    prompt_tokens: int
    limit: int
    stream: TextStream
    position: int = 0
    slot: int = -1
    first_step: int = 0
    last_step: int = 0
    finished: Literal["eos", "limit"] | None = None
    pieces: list[str] = field(default_factory=list)

    def take(self, token: int, ends: frozenset[int]) -> str:
        """Go on by the token that was chosen, and return the text that is complete now."""
        self.position += 1
        if self.position < self.prompt_tokens:
            return ""  # still inside the prompt: what was chosen is not kept
        self.tokens.append(token)
        if token in ends:
            self.finished = "eos"
        elif len(self.tokens) == self.prompt_tokens + self.limit:
            self.finished = "limit"
        text = "" if self.finished == "eos" else self.stream.push(token)
        if self.finished:
            text += self.stream.finish()
        self.pieces.append(text)
        return text

    def served(self, same_tokens: bool | None) -> Served:
        """Return the summary of a sequence that has ended."""
        assert self.finished is not None
        return Served(
            self.prompt,
            "".join(self.pieces),
            self.prompt_tokens,
            tuple(self.tokens[self.prompt_tokens :]),
            self.finished,
            range(self.first_step, self.last_step + 1),
            same_tokens,
        )


def _take_steps(
    decoder: BatchedDecoder, step: Step, sequences: Sequence[_Sequence]
) -> Iterator[Piece]:
    """Take decode steps until every sequence has ended."""
    ends = frozenset(decoder.config.eos_token_ids)
    rows = decoder.max_batch
    values = np.zeros((3, rows), np.int32)
    device_values = gk.zeros((3, rows), np.int32)
    device_chosen = gk.zeros(rows, np.int32)
    waiting, active = deque(sequences), list[_Sequence]()
    free = list(reversed(range(rows)))
    number = 0
    while waiting or active:
        while waiting and free:
            joining = waiting.popleft()
            joining.slot, joining.first_step = free.pop(), number
            active.append(joining)
        count = len(active)
        values[:, :count] = np.transpose(
            [(item.tokens[item.position], item.position, item.slot) for item in active]
        )
        device_values.set(values)
        tokens, positions, slots = (device_values[row, :count] for row in range(3))
        chosen = device_chosen[:count]
        step(tokens=tokens, positions=positions, slots=slots, next_tokens=chosen)
        for item, token in zip(active, chosen.get().tolist(), strict=True):
            text = item.take(token, ends)
            if item.finished:
                item.last_step = number
                free.append(item.slot)
            if text:
                yield Piece(item.prompt, text)
        active = [item for item in active if not item.finished]
        number += 1


def _each_alone(decoder: BatchedDecoder, sequences: Sequence[_Sequence]) -> list[bool]:
    """Decode each prompt by itself, and say whether it gets the same tokens."""
    decode = Decoder(decoder.llama.checkpoint, max_len=decoder.max_len).build("capture")
    try:
        same = []
        for sequence in sequences:
            prompt = sequence.tokens[: sequence.prompt_tokens]
            chosen = sequence.tokens[sequence.prompt_tokens :]
            run = repeat(decode, prompt, len(chosen), 0, timed=False)
            same.append(run.tokens == tuple(chosen))
        return same
    finally:
        decode.close()
