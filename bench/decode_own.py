"""graphkit's contenders of bench/decode.py: one list of kernels, launched in six ways.

``graphkit.kernels.decode`` is imported when the first of them is made: the peers can be measured
without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from decode_model import WINDOW, Answer, Model, Size, checked_layers, relative_error
from decode_setting import OWN_BOUND, DecodeSetting, Stepper
from exec_pool_setting import OWN, UnavailableError, WrongResultError
from graphkit.kernels.llama.checkpoint import Checkpoint

import graphkit as gk
from graphkit.arrays import describe
from graphkit.runtime.protocol import MemcpyKind

EAGER = f"{OWN} eager"
CAPTURED = f"{OWN} captured graph"
MANUAL = f"{OWN} graph, plain edges"
PROGRAMMATIC = f"{OWN} graph, programmatic edges"
LOOP = f"{OWN} device loop"
LOOKING = f"{OWN} host loop, looks after each token"
BUILDS = {EAGER: "eager", CAPTURED: "capture", MANUAL: "manual", PROGRAMMATIC: "programmatic"}

Maker = tuple[str, Callable[[], Stepper]]


class OwnFamily:
    """What graphkit's contenders for one batch have in common: the weights, what is in the caches.

    Attributes:
        checkpoint: the model's tensors in device memory.
    """

    def __init__(self, setting: DecodeSetting, model: Model, batch: int) -> None:
        self.setting, self.model, self.batch = setting, model, batch
        tensors = self._uploaded() if setting.simulated else model.tensors
        self.checkpoint = Checkpoint(model.config, tensors)

    def _uploaded(self) -> dict[str, Any]:
        """Return the simulator's copies of the tensors, which lie as a device's would."""
        model, uploaded = self.model, {}
        for name, tensor in model.tensors.items():
            uploaded[name] = gk.asarray(tensor)
        for layer in range(model.layer_count):
            at = f"model.layers.{layer}."
            for whole, names in (
                (model.qkv[layer], ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
                (model.gate_up[layer], ("mlp.gate_proj", "mlp.up_proj")),
            ):
                array, row = gk.asarray(whole), 0
                for name in names:
                    rows = model.tensors[f"{at}{name}.weight"].shape[0]
                    uploaded[f"{at}{name}.weight"] = array[row : row + rows]
                    row += rows
        return uploaded

    def fill_caches(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        """Put into the caches of every layer what the reference has there."""
        for layer in range(self.model.config.num_hidden_layers):
            self._fill(keys[layer], self.model.keys[layer])
            self._fill(values[layer], self.model.values[layer])

    def _fill(self, cache: Any, source: Any) -> None:
        """Copy the first sequences of what the caches begin with."""
        if self.setting.simulated:
            cache.set(source[: self.batch])
            return
        into, kind = describe(cache), MemcpyKind.DEVICE_TO_DEVICE
        self.setting.drain()
        self.setting.runtime.memcpy(into.ptr, describe(source).ptr, into.nbytes, kind)

    def answer_of(
        self, logits: Any, chosen: Any, keys: Sequence[Any], values: Sequence[Any], context: int
    ) -> Answer:
        """Return what a step at a context left behind."""
        appended = {
            layer: (self._appended(keys[layer], context), self._appended(values[layer], context))
            for layer in checked_layers(self.model.config)
        }
        return Answer(self._wide(logits), chosen.get(), appended)

    def _wide(self, logits: Any) -> Any:
        if self.setting.simulated:
            return logits.get().astype(np.float64)
        torch = self.setting.library("torch")
        return torch.as_tensor(logits, device="cuda").clone()

    def _appended(self, cache: Any, context: int) -> Any:
        if self.setting.simulated:
            return cache.get()[:, :, context].astype(np.float64)
        torch = self.setting.library("torch")
        # The array interface has no bfloat16.
        bits = torch.as_tensor(cache.view(cache.shape, np.int16), device="cuda")
        return bits.view(torch.bfloat16)[:, :, context].float()


class Own(OwnFamily):
    """The contenders that share a decoder."""

    def __init__(self, setting: DecodeSetting, model: Model, batch: int) -> None:
        try:
            from graphkit.kernels.decode import FusedDecoder
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        super().__init__(setting, model, batch)
        self.decoder = FusedDecoder(self.checkpoint, batch=batch, max_len=model.places)
        self._builds: dict[str, Any] = {}

    def makers(self, size: Size) -> Sequence[Maker]:
        """Return who takes part."""
        makers: list[Maker] = [
            (name, lambda name=name: self.build(size, name))  # type: ignore[misc]
            for name in BUILDS
        ]
        return [
            *makers,
            (LOOKING, lambda: self.looking(size)),
            (LOOP, lambda: self.loop(size)),
        ]

    def decode(self, build: str, **options: Any) -> Any:
        """Return a build of the decoder; each is made once a batch."""
        if build not in self._builds:
            self._builds[build] = self.decoder.build(build, stream=self.setting.stream, **options)
        return self._builds[build]

    def build(self, size: Size, name: str) -> Stepper:
        """One launch a token: of each kernel, or of a graph of them."""
        return self._stepper(size, name, self.decode(BUILDS[name]).launch)

    def looking(self, size: Size) -> Stepper:
        """A graph a token, and after each the host looks whether all sequences have ended."""
        decode = self.decode("programmatic")
        launch, last_tokens, end = decode.launch, decode.last_tokens, -1

        def step() -> bool:
            launch()
            return bool((last_tokens() == end).all())

        stepper = self._stepper(size, LOOKING, step)
        stepper.stops = True
        return stepper

    def loop(self, size: Size) -> Stepper:
        """A while node around the step: one launch for a window of tokens."""
        try:
            decode = self.decode("loop", steps=WINDOW)
        except (TypeError, ValueError) as error:
            raise UnavailableError(f"the decoder builds no loop: {error}") from error
        given = self._stepper(size, LOOP, decode.launch)
        return LoopStepper(
            **{**vars(given), "tokens": WINDOW, "stops": True},
            once=self.decode("manual").launch,
            first=size.first,
        )

    def _stepper(self, size: Size, name: str, step: Callable[[], object]) -> Stepper:
        return Stepper(
            name,
            step,
            lambda: self.start(size),
            self.place,
            lambda _: self.answer(size),
            OWN_BOUND,
        )

    # --- state -----------------------------------------------------------------------------------

    def start(self, size: Size) -> None:
        """Put everything where the reference has it, and wipe what a step writes."""
        decoder, model = self.decoder, self.model
        self.fill_caches(decoder.k_cache, decoder.v_cache)
        # Whenever a decoder looks its token up, ahead of the position or at it, it is this one.
        prompts = [[int(token)] * size.attended for token in model.tokens[: self.batch]]
        decoder.start(*prompts)
        decoder.logits.set(np.full(decoder.logits.shape, np.nan, np.float32))
        decoder.next_token.set(np.full(self.batch, -1, np.int32))
        self.place(size.context)

    def place(self, position: int) -> None:
        """Put all sequences at a position."""
        self.decoder.position.set(np.full(self.batch, position, np.int32))

    def answer(self, size: Size) -> Answer:
        """Return what a step left behind."""
        decoder = self.decoder
        chosen, caches = decoder.next_token, (decoder.k_cache, decoder.v_cache)
        return self.answer_of(decoder.logits, chosen, *caches, size.context)

    def close(self) -> None:
        """Give back graphs, caches and activations."""
        self.setting.drain()
        for decode in self._builds.values():
            decode.close()
        self._builds.clear()
        del self.decoder


@dataclass
class LoopStepper(Stepper):
    """A contender that decodes a window of tokens a launch; held against as many launches.

    Attributes:
        once: launches one step of the same decoder.
        first: the position that a window begins at.
    """

    once: Callable[[], object] = lambda: None
    first: int = 0

    def verify(self, expected: Answer, drain: Callable[[], None]) -> float:
        """Make a window of steps both ways; return the relative error of the last logits.

        Raises:
            WrongResultError: when logits or tokens differ.
        """
        found = []
        for window in (self._single, self.step):
            self.start()
            self.place(self.first)
            drain()
            window()
            drain()
            found.append(self.answer(None))
        one, other = found
        error = relative_error(other.logits, one.logits)
        if not error <= self.bound:
            raise WrongResultError(f"{self.name}: logits: {error:.2g} off, expected {self.bound:g}")
        if not bool((one.next_tokens == other.next_tokens).all()):
            raise WrongResultError(f"{self.name}: other tokens than by single launches")
        return error

    def _single(self) -> None:
        for _ in range(self.tokens):
            self.once()
