"""Text from a Llama checkpoint, one launch a token, and whether every build writes the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import Checkpoint
from .decoder import BUILDS, Build, Decode, Decoder, check_prompt
from .tokenizer import load_tokenizer

__all__ = ["BUNDLED_MODEL", "BuildRun", "Summary", "generate"]

BUNDLED_MODEL = Path(__file__).parent / "python-bytes"

_CACHE_GRAIN = 64  # tokens


@dataclass(frozen=True)
class BuildRun:
    """What one build did.

    Attributes:
        build: ``"eager"``, ``"capture"`` or ``"manual"``.
        nodes: nodes of its graph; 0 for eager.
        launches: launches in all: of the graph, or of kernels for eager.
        tokens: the tokens it appended to the prompt.
        ms_per_token: host time from the first launch to the end of the last, divided by the
            number of decode steps; None where it was not measured.
    """

    build: Build
    nodes: int
    launches: int
    tokens: tuple[int, ...]
    ms_per_token: float | None


@dataclass(frozen=True)
class Summary:
    """What came of a generation, after its text.

    Attributes:
        text: all of it, the prompt left out.
        prompt_tokens: length of the prompt.
        runs: the build that was asked for first, then the others.
        same_tokens: whether all builds chose the same tokens; None when only one ran.
    """

    text: str
    prompt_tokens: int
    runs: tuple[BuildRun, ...]
    same_tokens: bool | None


def generate(
    model: str | Path,
    prompt: str,
    tokens: int,
    *,
    build: Build = "capture",
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    compare: bool = True,
    timed: bool = False,
) -> Iterator[str | Summary]:
    """Continue a prompt on the current runtime: pieces of text as they come, then a summary.

    Everything that can be wrong with the arguments is found before this returns, hence before
    anything is launched.

    Args:
        model: a folder in Hugging Face format.
        prompt: the text to continue.
        tokens: how many tokens to append; fewer when the model ends its text.
        build: which build writes the text.
        temperature: 0 takes the most likely token; above, tokens are drawn.
        top_k: draw among so many most likely tokens; 0 means all.
        top_p: draw among the most likely tokens that have this share of the probability.
        seed: of the random state, 0 to 2**64 - 1.
        compare: whether to run the other builds too, and compare their tokens.
        timed: whether to measure the time of every build, without reading in between. Only a
            device has times: leave it False on the simulator.

    Raises:
        CheckpointError: the model folder cannot be used.
        ValueError: an empty prompt, one longer than the model's context, or an argument out of
            range.
    """
    if build not in BUILDS:
        raise ValueError(f"build: expected one of {', '.join(BUILDS)}, came {build!r}")
    checkpoint = Checkpoint.load(model)
    config = checkpoint.config
    tokenizer = load_tokenizer(model, config.vocab_size)
    ids = tokenizer.encode(prompt)
    limit = config.max_position_embeddings
    check_prompt(ids, limit, config.vocab_size)
    decoder = Decoder(
        checkpoint,
        max_len=cache_places(len(ids), tokens, limit),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    ends = set(config.eos_token_ids)

    decoder.start(ids, seed=seed)

    def compared(chosen: list[int]) -> Iterator[BuildRun]:
        for other in BUILDS:
            if other != build:
                decode = decoder.build(other)
                try:
                    yield repeat(decode, ids, len(chosen), seed, timed)
                finally:
                    decode.close()

    def launch_all(first: Decode) -> Iterator[str | Summary]:
        stream = tokenizer.stream()
        pieces: list[str] = []
        chosen: list[int] = []
        for position in range(len(ids) - 1 + tokens):
            first.launch()
            if position < len(ids) - 1:
                continue  # still inside the prompt: what was chosen is not kept
            token = int(first.last_tokens()[0])
            chosen.append(token)
            if token in ends:
                break
            piece = stream.push(token)
            if piece:
                pieces.append(piece)
                yield piece
        rest = stream.finish()
        if rest:
            pieces.append(rest)
            yield rest
        runs = [repeat(first, ids, len(chosen), seed)] if timed else [_describe(first, ids, chosen)]
        if compare:
            runs += compared(chosen)
        # The streamed tokens count too: a timed run of the same build repeats them.
        same = all(run.tokens == tuple(chosen) for run in runs) if compare else None
        yield Summary("".join(pieces), len(ids), tuple(runs), same)

    def build_and_launch() -> Iterator[str | Summary]:
        first = decoder.build(build)
        try:
            yield from launch_all(first)
        finally:  # also when the reader of the text stops early
            first.close()

    return build_and_launch()


def cache_places(prompt: int, tokens: int, limit: int) -> int:
    """Return the places of a cache for a prompt and what follows it, all counted in tokens.

    No more than this text needs: a context of 131,072 tokens would take gigabytes.

    Raises:
        ValueError: the model's context, ``limit``, has no place for so many.
    """
    if tokens < 1:
        raise ValueError(f"tokens: expected 1 or more, came {tokens}")
    if prompt + tokens > limit:
        raise ValueError(
            f"tokens: expected at most {limit - prompt} after a prompt of {prompt}, since the "
            f"cache holds {limit}, came {tokens}"
        )
    return min(-(-(prompt + tokens) // _CACHE_GRAIN) * _CACHE_GRAIN, limit)


def _describe(
    decode: Decode, prompt: list[int], chosen: list[int], milliseconds: float | None = None
) -> BuildRun:
    steps = len(prompt) - 1 + len(chosen)
    launches = steps * decode.launches_per_token
    return BuildRun(decode.build, decode.node_count, launches, tuple(chosen), milliseconds)


def repeat(
    decode: Decode, prompt: list[int], count: int, seed: int, timed: bool = True
) -> BuildRun:
    """Decode the same again without reading in between: one wait, at the end."""
    decoder = decode.decoder
    decoder.start(prompt, seed=seed)
    steps = len(prompt) - 1 + count
    begin = time.perf_counter()
    for _ in range(steps):
        decode.launch()
    decode.stream.synchronize()
    spent = (time.perf_counter() - begin) * 1e3 / steps
    row = decoder.tokens.get()[0]
    chosen = [int(token) for token in row[len(prompt) : len(prompt) + count]]
    return _describe(decode, prompt, chosen, spent if timed else None)
