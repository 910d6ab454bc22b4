"""Text from a Llama checkpoint, and whether every build of the decode step writes the same."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import graphkit as gk
from graphkit.node_groups import check_state

from ..launch import instance, integer
from .checkpoint import Checkpoint, path_of
from .decoder import Build, Decode, Decoder, check_prompt
from .tokenizer import Tokenizer, load_tokenizer

__all__ = ["BUNDLED_MODEL", "BuildRun", "Kernels", "Loop", "Summary", "generate"]

Kernels = Literal["simple", "fused"]
Loop = Literal["host", "device"]

BUNDLED_MODEL = Path(__file__).parent / "python-bytes"

_CACHE_GRAIN = 64  # tokens


@dataclass(frozen=True)
class BuildRun:
    """What one build did.

    Attributes:
        build: one of the decoder's.
        nodes: nodes of its graph, a loop's body included; 0 for eager.
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
        kernels: which kernels were launched, and why those where nobody asked for them.
    """

    text: str
    prompt_tokens: int
    runs: tuple[BuildRun, ...]
    same_tokens: bool | None
    kernels: str = "simple"


def generate(
    model: str | Path,
    prompt: str,
    tokens: int,
    *,
    build: Build | None = None,
    kernels: Kernels | None = None,
    loop: Loop = "host",
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
        build: which build writes the text: by default ``"capture"`` of the simple kernels,
            ``"programmatic"`` of the fused ones.
        kernels: ``"simple"``, one for each operation, for any model and device, or ``"fused"``,
            those of graphkit.kernels.decode. By default fused on a device that they fit, with a
            checkpoint that they fit; the simulator's default is simple.
        loop: ``"host"`` launches token by token; ``"device"`` launches once, a graph with a loop
            in it, and the text comes all at once. It needs the fused kernels.
        temperature: 0 takes the most likely token; above, tokens are drawn.
        top_k: draw among so many most likely tokens; 0 means all.
        top_p: draw among the most likely tokens that have this share of the probability.
        seed: of the random state, 0 to 2**64 - 1.
        compare: whether to run the other builds too, and compare their tokens.
        timed: whether to measure the time of every build, without reading in between. Only a
            device has times: leave it False on the simulator.

    Raises:
        CheckpointError: the model folder cannot be used.
        TypeError: an argument of another type.
        ValueError: an empty prompt, one longer than the model's context, or an argument out of
            range.
    """
    if loop not in ("host", "device"):
        raise ValueError(f"loop: expected host or device, came {loop!r}")
    if loop == "device" and (build, kernels) not in _OF_DEVICE_LOOP:
        raise ValueError(
            "loop: expected host with a build or the simple kernels, since the loop on the device "
            f"is a build of the fused ones, came device with build={build!r}, kernels={kernels!r}"
        )
    for argument, flag in (("compare", compare), ("timed", timed)):
        check_state(flag, argument)
    tokens = integer("tokens", tokens)
    checkpoint = Checkpoint.load(path_of("model", model))
    config = checkpoint.config
    tokenizer = load_tokenizer(model, config.vocab_size)
    ids = encoded(tokenizer, prompt, "prompt")
    limit = config.max_position_embeddings
    check_prompt(ids, limit, config.vocab_size)
    places = cache_places(len(ids), tokens, limit)
    type_, why = _decoder_type(checkpoint, "fused" if loop == "device" else kernels)
    first_build = _first_build(type_, "loop" if loop == "device" else build)
    decoder = type_(checkpoint, max_len=places, temperature=temperature, top_k=top_k, top_p=top_p)
    ends = set(config.eos_token_ids)

    decoder.start(ids, seed=seed)

    def compared(chosen: list[int]) -> Iterator[BuildRun]:
        for other in decoder.builds:
            if other != first_build:
                decode = decoder.build(other)
                try:
                    yield repeat(decode, ids, len(chosen), seed, timed)
                finally:
                    decode.close()

    def choose(first: Decode) -> Iterator[int]:
        """Yield the tokens, each as soon as it is known."""
        if first.body is not None:
            _limit_length(first, len(ids) + tokens)
            first.launch()
            first.stream.synchronize()
            yield from _appended(decoder, len(ids))
            return
        for position in range(len(ids) - 1 + tokens):
            first.launch()
            if position < len(ids) - 1:
                continue  # still inside the prompt: what was chosen is not kept
            token = int(first.last_tokens()[0])
            yield token
            if token in ends:
                return

    def launch_all(first: Decode) -> Iterator[str | Summary]:
        stream = tokenizer.stream()
        pieces: list[str] = []
        chosen: list[int] = []
        for token in choose(first):
            chosen.append(token)
            piece = "" if token in ends else stream.push(token)
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
        yield Summary("".join(pieces), len(ids), tuple(runs), same, why)

    def build_and_launch() -> Iterator[str | Summary]:
        first = decoder.build(first_build)
        try:
            yield from launch_all(first)
        finally:  # also when the reader of the text stops early
            first.close()

    return build_and_launch()


# What may be asked for together with the loop on the device.
_OF_DEVICE_LOOP: tuple[tuple[Build | None, Kernels | None], ...] = tuple(
    itertools.product((None, "loop"), (None, "fused"))
)


def _decoder_type(checkpoint: Checkpoint, kernels: Kernels | None) -> tuple[type[Decoder], str]:
    """Return the decoder of some kernels, and what to say of them."""
    # Here, since those modules import this package.
    from ..decode.decoder import FusedDecoder
    from ..decode.model import check_fit

    if kernels == "simple":
        return Decoder, "simple"
    if kernels == "fused":
        return FusedDecoder, "fused"
    if kernels is not None:
        raise ValueError(f"kernels: expected simple or fused, came {kernels!r}")
    if gk.current().name == "sim":
        return Decoder, "simple, the default on the simulator"
    try:
        check_fit(checkpoint)
    except ValueError as error:
        return Decoder, f"simple, since the fused ones do not fit: {error}"
    return FusedDecoder, "fused, the default where they fit"


def _first_build(type_: type[Decoder], build: Build | None) -> Build:
    """Return the build that writes the text."""
    if build is None:
        return "programmatic" if "programmatic" in type_.builds else "capture"
    if build not in type_.builds:
        other = " of the simple kernels" if build in get_args(Build) else ""
        raise ValueError(f"build: expected one of {', '.join(type_.builds)}{other}, came {build!r}")
    return build


def _limit_length(decode: Decode, tokens: int) -> None:
    """Let a loop end when its row has so many tokens, the prompt included."""
    decode.decoder.length_limit.set([tokens])  # type: ignore[attr-defined]


def _appended(decoder: Decoder, prompt: int) -> list[int]:
    """Return what stands behind the prompt, up to the position."""
    length = int(decoder.position.get()[0]) + 1
    return [int(token) for token in decoder.tokens.get()[0, prompt:length]]


def encoded(tokenizer: Tokenizer, text: str, argument: str) -> list[int]:
    """Return the tokens of a text.

    Raises:
        TypeError: it is no str.
        ValueError: it has no UTF-8.
    """
    try:
        return tokenizer.encode(instance(argument, text, str))
    except UnicodeEncodeError as error:
        raise ValueError(f"{argument}: expected text that has UTF-8, came {error}") from None


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
    launches = 1 if decode.body is not None else steps * decode.launches_per_token
    return BuildRun(decode.build, decode.node_count, launches, tuple(chosen), milliseconds)


def repeat(
    decode: Decode, prompt: list[int], count: int, seed: int, timed: bool = True
) -> BuildRun:
    """Decode the same again without reading in between: one wait, at the end."""
    decoder = decode.decoder
    decoder.start(prompt, seed=seed)
    steps = len(prompt) - 1 + count
    launches = steps
    if decode.body is not None:
        _limit_length(decode, len(prompt) + count)
        launches = 1
    begin = time.perf_counter()
    for _ in range(launches):
        decode.launch()
    decode.stream.synchronize()
    spent = (time.perf_counter() - begin) * 1e3 / steps
    chosen = _appended(decoder, len(prompt))[:count]
    return _describe(decode, prompt, chosen, spent if timed else None)
