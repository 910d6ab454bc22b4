"""The PyTorch contenders of bench/decode.py: a Llama written by hand, and Hugging Face's.

Both use the model's tensors where they lie. A step of either takes a token of each sequence,
appends its key and value to static caches, chooses the next token greedily and moves the position
on, all on the device: so it can be one CUDA graph.

By hand: query, key and value are one matrix, gate and up too; RMSNorm is `F.rms_norm`; attention is
`F.scaled_dot_product_attention` with `enable_gqa` over a slice of the cache. The slice has one
length, context + 1, for all steps of a window: a mask in its place would shut out flash attention.
That is right at the step that is verified, which stands in the middle of the window, and as many
bytes as the right slices over the window.

Needs PyTorch, so bench/decode.py imports it only where PyTorch is.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as PyTorch's users call it
from decode_model import WINDOW, Answer, Model, Size, checked_layers
from decode_setting import PEER_BOUND, Stepper
from exec_pool_setting import UnavailableError

HAND = "PyTorch"
HUGGING_FACE = "Hugging Face"
EAGER, GRAPH = "eager", "CUDA graph"
LAYERS = "compiled layers in one CUDA graph"
REDUCE_OVERHEAD, MAX_AUTOTUNE = "compile reduce-overhead", "compile max-autotune"
MODES = {REDUCE_OVERHEAD: "reduce-overhead", MAX_AUTOTUNE: "max-autotune"}

# Batches whose compiled layers are tuned by coordinate descent; the others' would take too long.
TUNED = (1, 8, 64)

Maker = tuple[str, Callable[[], Stepper]]


def prepare() -> None:
    """Set what compiled contenders need, before the first of them is made."""
    torch.set_grad_enabled(False)
    # float32 matrices are the reference's only, which must not be rounded to TF32.
    torch.set_float32_matmul_precision("highest")
    # One function is compiled for every batch, and nothing is to be given up for that.
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 1024
    with suppress(Exception):  # else it prints a table for each product that it tunes
        select: Any = importlib.import_module("torch._inductor.select_algorithm")
        select.PRINT_AUTOTUNE = False


# --- by hand -------------------------------------------------------------------------------------


def turn(x: Any, cosines: Any, sines: Any) -> Any:
    """Turn each head's halves against each other, as Hugging Face lays them out."""
    low, high = x.chunk(2, -1)
    return x * cosines + torch.cat((-high, low), -1) * sines


class Layer(torch.nn.Module):  # type: ignore[misc]
    """The weights and the caches of a layer, and what is done with them."""

    def __init__(self, model: Model, index: int, batch: int) -> None:
        super().__init__()
        config, at = model.config, f"model.layers.{index}."
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width, self.eps = config.head_dim, config.rms_norm_eps
        for name, tensor in {
            "qkv": model.qkv[index],
            "gate_up": model.gate_up[index],
            "o": model.tensors[at + "self_attn.o_proj.weight"],
            "down": model.tensors[at + "mlp.down_proj.weight"],
            "norm": model.tensors[at + "input_layernorm.weight"],
            "mlp_norm": model.tensors[at + "post_attention_layernorm.weight"],
        }.items():
            setattr(self, name, torch.nn.Parameter(tensor, requires_grad=False))
        self.register_buffer("keys", model.keys[index][:batch].clone())
        self.register_buffer("values", model.values[index][:batch].clone())

    def project(self, x: Any, cosines: Any, sines: Any, position: Any) -> Any:
        """Normalize, project, turn and append to the caches; return the queries."""
        normed = F.rms_norm(x, x.shape[-1:], self.norm, self.eps)
        qkv = F.linear(normed, self.qkv).view(x.shape[0], -1, self.width)
        turned = turn(qkv[:, : self.heads + self.kv_heads], cosines, sines)
        fresh = qkv[:, self.heads + self.kv_heads :]
        self.keys.index_copy_(2, position, turned[:, self.heads :, None])
        self.values.index_copy_(2, position, fresh[:, :, None])
        return turned[:, : self.heads, None]

    def attend(self, queries: Any, attended: int) -> Any:
        """Return what the queries find in the first places of the caches."""
        keys, values = self.keys[:, :, :attended], self.values[:, :, :attended]
        return F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)

    def finish(self, x: Any, mixed: Any) -> Any:
        """Add the attention's branch, and then the MLP's."""
        x = x + F.linear(mixed.reshape(x.shape[0], -1), self.o)
        normed = F.rms_norm(x, x.shape[-1:], self.mlp_norm, self.eps)
        gate, up = F.linear(normed, self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


def begin(llama: Any, layer: Any) -> tuple[Any, Any, Any, Any]:
    """Begin a step, up to the first attention: a region that is compiled as one."""
    cosines, sines = llama.cosines[llama.position], llama.sines[llama.position]
    x = F.embedding(llama.token, llama.embedding)
    return x, layer.project(x, cosines, sines, llama.position), cosines, sines


def between(
    layer: Any, following: Any, x: Any, mixed: Any, cosines: Any, sines: Any, position: Any
) -> tuple[Any, Any]:
    """Go on from one layer's attention to the next one's: a region, the same for all layers."""
    x = layer.finish(x, mixed)
    return x, following.project(x, cosines, sines, position)


def end(llama: Any, layer: Any, x: Any, mixed: Any) -> Any:
    """End a step, behind the last attention: a region."""
    x = layer.finish(x, mixed)
    logits = F.linear(F.rms_norm(x, x.shape[-1:], llama.norm, llama.eps), llama.embedding)
    llama.token.copy_(logits.argmax(-1))
    llama.position.add_(1)
    return logits


Regions = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]


class Llama(torch.nn.Module):  # type: ignore[misc]
    """A Llama as somebody writes it who wants PyTorch to decode fast, for one batch."""

    def __init__(self, model: Model, batch: int) -> None:
        super().__init__()
        self.model, self.batch, self.eps = model, batch, model.config.rms_norm_eps
        embedding = model.tensors["model.embed_tokens.weight"]
        device = embedding.device
        self.embedding = torch.nn.Parameter(embedding, requires_grad=False)
        self.norm = torch.nn.Parameter(model.tensors["model.norm.weight"], requires_grad=False)
        for name, table in zip(
            ("cosines", "sines"), model.config.rotary_tables(model.places), strict=True
        ):
            both = torch.from_numpy(table).to(device).to(embedding.dtype).repeat(1, 2)
            self.register_buffer(name, both)
        self.register_buffer("token", torch.zeros(batch, dtype=torch.int64, device=device))
        self.register_buffer("position", torch.zeros(1, dtype=torch.int64, device=device))
        self.layers = torch.nn.ModuleList(
            Layer(model, index, batch) for index in range(model.config.num_hidden_layers)
        )
        for buffer in self.buffers():
            # Else Inductor's graphs copy it every time, or refuse to change it in place.
            torch._dynamo.mark_static_address(buffer, guard=False)

    def step(self, attended: int, regions: Regions = (begin, between, end)) -> Any:
        """Decode one token of each sequence; return the logits."""
        first, middle, last = regions
        layers = list(self.layers)
        x, queries, cosines, sines = first(self, layers[0])
        for index in range(1, len(layers)):  # itertools would be one more thing to trace
            layer, following = layers[index - 1], layers[index]
            mixed = layer.attend(queries, attended)
            x, queries = middle(layer, following, x, mixed, cosines, sines, self.position)
        return last(self, layers[-1], x, layers[-1].attend(queries, attended))

    # --- for the benchmark -----------------------------------------------------------------------

    def start(self, size: Size) -> None:
        """Put everything where the reference has it."""
        for index, layer in enumerate(self.layers):
            layer.keys.copy_(self.model.keys[index][: self.batch])
            layer.values.copy_(self.model.values[index][: self.batch])
        self.token.copy_(torch.from_numpy(self.model.tokens[: self.batch]))
        self.place(size.context)

    def place(self, position: int) -> None:
        """Put the position somewhere."""
        self.position.fill_(position)

    def answer(self, size: Size, logits: Any) -> Answer:
        """Return what a step left behind."""
        appended = {
            index: (
                self.layers[index].keys[:, :, size.context].float(),
                self.layers[index].values[:, :, size.context].float(),
            )
            for index in checked_layers(self.model.config)
        }
        return Answer(logits.float(), self.token.clone(), appended)


class HandWritten:
    """The contenders written by hand, for one batch."""

    def __init__(self, model: Model, batch: int, graphs: Graphs) -> None:
        self.llama = Llama(model, batch)
        self.graphs = graphs

    def makers(self, size: Size, *, whole: bool = False) -> Sequence[Maker]:
        """Return who takes part; with ``whole`` also the models compiled as one."""
        makers: list[Maker] = [
            (f"{HAND} {EAGER}", lambda: self.eager(size)),
            (f"{HAND} {GRAPH}", lambda: self.graph(size)),
            (f"{HAND} {LAYERS}", lambda: self.compiled_layers(size)),
        ]
        if whole:
            makers += [
                (f"{HAND} {how}", lambda how=how: self.compiled(size, how))  # type: ignore[misc]
                for how in MODES
            ]
        return makers

    def _stepper(self, how: str, size: Size, step: Callable[[], Any], *owned: Any) -> Stepper:
        llama = self.llama
        answer = functools.partial(llama.answer, size)
        return stepper(
            f"{HAND} {how}", step, lambda: llama.start(size), llama.place, answer, *owned
        )

    def eager(self, size: Size) -> Stepper:
        """Operator by operator."""
        llama, attended = self.llama, size.attended
        return self._stepper(EAGER, size, lambda: llama.step(attended))

    def graph(self, size: Size) -> Stepper:
        """The operators as one torch.cuda.CUDAGraph."""
        return self._captured(GRAPH, size, lambda: self.llama.step(size.attended))

    def compiled_layers(self, size: Size) -> Stepper:
        """What lies between two attentions compiled once for all layers, in one CUDAGraph."""
        regions = compiled_regions(size.batch in TUNED)
        return self._captured(LAYERS, size, lambda: self.llama.step(size.attended, regions))

    def _captured(self, how: str, size: Size, step: Callable[[], Any]) -> Stepper:
        self.llama.start(size)
        graph, logits = self.graphs.capture(step)
        return self._stepper(how, size, graph.replay, logits, graph.reset)

    def compiled(self, size: Size, how: str) -> Stepper:
        """The whole step compiled, in Inductor's own CUDA graph."""
        self.graphs.needs_device()
        step = torch.compile(self.llama.step, mode=MODES[how], fullgraph=True, dynamic=False)
        attended = size.attended
        self.llama.start(size)

        def marked() -> Any:
            # As PyTorch's manual asks for: who ran in between may not be a part of its graphs.
            torch.compiler.cudagraph_mark_step_begin()
            return step(attended)

        warm_up(marked)
        return self._stepper(how, size, marked)

    def close(self) -> None:
        """Give back the caches."""
        del self.llama


def stepper(
    name: str,
    step: Callable[[], Any],
    start: Callable[[], None],
    place: Callable[[int], None],
    answer: Callable[[Any], Answer],
    logits: Any = None,
    close: Callable[[], None] = lambda: None,
) -> Stepper:
    """Return a contender whose step returns its logits, or leaves them in ``logits``."""

    def begin() -> None:
        start()
        if logits is not None:
            logits.fill_(torch.nan)

    return Stepper(
        name,
        step,
        begin,
        place,
        lambda returned: answer(returned if logits is None else logits),
        PEER_BOUND,
        close=close,
    )


@functools.cache
def compiled_regions(tuned: bool) -> Regions:
    """Return the regions of a step compiled without CUDA graphs, once for all batches.

    ``tuned`` tries the neighbours of each kernel's configuration (coordinate descent), which is
    slow, and for a single row turns the matrix products into reductions, which are faster there.
    """
    how: dict[str, Any] = {"options": {"max_autotune": True}}
    if tuned:
        how = {"mode": "max-autotune-no-cudagraphs"}  # coordinate descent included
    first, middle, last = (
        torch.compile(region, fullgraph=True, dynamic=False, **how)
        for region in (begin, between, end)
    )
    return first, middle, last


# --- Hugging Face --------------------------------------------------------------------------------


def hugging_face_model(model: Model) -> Any:
    """Return a LlamaForCausalLM over the model's tensors."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    except ImportError as error:
        raise UnavailableError(str(error)) from error
    given = {name: value for name, value in model.source.items() if name != "architectures"}
    base = given.pop("rope_theta")
    rope = {**given.pop("rope_scaling"), "rope_theta": base}
    config = LlamaConfig(**given, rope_parameters=rope, attn_implementation="sdpa")
    with torch.device("meta"):
        made = LlamaForCausalLM(config).eval()
    made.load_state_dict(model.tensors, strict=False, assign=True)
    made.tie_weights()
    device = model.tensors["model.norm.weight"].device
    made.model.rotary_emb = LlamaRotaryEmbedding(config=config).to(device)
    left = [name for name, tensor in made.named_parameters() if tensor.is_meta]
    if left or made.lm_head.weight.data_ptr() != made.model.embed_tokens.weight.data_ptr():
        raise RuntimeError(f"not the model's tensors: {left or 'lm_head'}")
    return made.requires_grad_(False)


class HuggingFace:
    """Hugging Face's contenders, for one batch, each with a StaticCache of a context's length."""

    def __init__(self, model: Model, batch: int, graphs: Graphs, made: Any) -> None:
        self.model, self.batch, self.graphs, self.made = model, batch, graphs, made
        device = model.tensors["model.norm.weight"].device
        self.token = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        torch._dynamo.mark_static_address(self.token, guard=False)
        self._cache: tuple[Size, Any] | None = None

    def cache(self, size: Size) -> Any:
        """Return the cache of a size; the one before is given back."""
        if self._cache is None or self._cache[0] != size:
            from transformers import StaticCache

            self._cache = None
            config = self.model.config
            cache = StaticCache(config=self.made.config, max_cache_len=size.context + WINDOW)
            cache.early_initialization(
                self.batch,
                config.num_key_value_heads,
                config.head_dim,
                torch.bfloat16,
                self.token.device,
            )
            self._cache = size, cache
        return self._cache[1]

    def makers(self, size: Size, *, whole: bool = False) -> Sequence[Maker]:
        """Return who takes part; with ``whole`` also the models compiled as one."""
        makers: list[Maker] = [
            (f"{HUGGING_FACE} {EAGER}", lambda: self._stepper(EAGER, size, self._step(size))),
            (f"{HUGGING_FACE} {GRAPH}", lambda: self.graph(size)),
        ]
        if whole:
            makers += [
                (f"{HUGGING_FACE} {how}", lambda how=how: self.compiled(size, how))  # type: ignore[misc]
                for how in MODES
            ]
        return makers

    def _step(self, size: Size) -> Callable[[], Any]:
        made, cache, token = self.made, self.cache(size), self.token

        def step() -> Any:
            logits = made(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1]
            token.copy_(logits.argmax(-1, keepdim=True))
            return logits

        return step

    def _start(self, size: Size) -> None:
        length = size.context + WINDOW
        for index, layer in enumerate(self.cache(size).layers):
            layer.keys.copy_(self.model.keys[index][: self.batch, :, :length])
            layer.values.copy_(self.model.values[index][: self.batch, :, :length])
        self.token.copy_(torch.from_numpy(self.model.tokens[: self.batch, None]))
        self._place(size, size.context)

    def _place(self, size: Size, position: int) -> None:
        for layer in self.cache(size).layers:
            layer.cumulative_length.fill_(position)

    def _answer(self, size: Size, logits: Any) -> Answer:
        layers = self.cache(size).layers
        appended = {
            index: (
                layers[index].keys[:, :, size.context].float(),
                layers[index].values[:, :, size.context].float(),
            )
            for index in checked_layers(self.model.config)
        }
        return Answer(logits.float(), self.token[:, 0].clone(), appended)

    def _stepper(self, how: str, size: Size, step: Callable[[], Any], *owned: Any) -> Stepper:
        start = functools.partial(self._start, size)
        place = functools.partial(self._place, size)
        answer = functools.partial(self._answer, size)
        return stepper(f"{HUGGING_FACE} {how}", step, start, place, answer, *owned)

    def graph(self, size: Size) -> Stepper:
        """The operators as one torch.cuda.CUDAGraph."""
        step = self._step(size)
        self._start(size)
        graph, logits = self.graphs.capture(step)
        return self._stepper(GRAPH, size, graph.replay, logits, graph.reset)

    def compiled(self, size: Size, how: str) -> Stepper:
        """The whole step compiled, in Inductor's own CUDA graph."""
        self.graphs.needs_device()
        step = torch.compile(self._step(size), mode=MODES[how], fullgraph=True, dynamic=False)
        self._start(size)

        def marked() -> Any:
            torch.compiler.cudagraph_mark_step_begin()  # as above
            return step()

        warm_up(marked)
        return self._stepper(how, size, marked)

    def close(self) -> None:
        """Give back the cache."""
        self._cache = None


# --- graphs --------------------------------------------------------------------------------------


def warm_up(step: Callable[[], Any]) -> None:
    """Let Inductor compile a step, warm up, and capture its CUDA graph.

    Raises:
        RuntimeError: when it decided against a graph, which it only counts.
    """
    counters = torch._dynamo.utils.counters["inductor"]
    before = counters["cudagraph_skips"]
    for _ in range(4):
        step()
    if counters["cudagraph_skips"] != before:
        raise RuntimeError("Inductor made no CUDA graph of it")


class Graphs:
    """Captures PyTorch's graphs; those whose capture failed are kept, for its allocator."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._abandoned: list[object] = []

    def needs_device(self) -> None:
        """Raise UnavailableError without a device."""
        if self.device == "cpu":
            raise UnavailableError("needs a device")

    def capture(self, step: Callable[[], Any]) -> tuple[Any, Any]:
        """Capture a step that has been made a few times; return the graph and what it returns."""
        self.needs_device()
        for _ in range(3):  # libraries make their workspaces, and Inductor compiles
            step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream()):
                result = step()
        except BaseException:
            # Else PyTorch's allocator takes the pool for that of a live capture from now on.
            with suppress(Exception):
                graph.capture_end()
            with suppress(Exception):
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            self._abandoned.append(graph)
            raise
        return graph, result
