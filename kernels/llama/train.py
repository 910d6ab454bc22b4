"""Train the bundled byte-level Llama on the Python standard library's own source files.

Run once, on a machine with a CUDA device and PyTorch::

    python3 kernels/llama/train.py --out model --seconds 150

The model below computes what Hugging Face's ``LlamaForCausalLM`` computes (RMSNorm, half-split
rotary embedding with llama3 scaling, grouped key and value heads, SiLU-gated MLP, tied
embeddings), under the same parameter names, so what is written loads there unchanged. The weights
are rounded to bfloat16 *before* the final evaluation and the samples: the numbers in the model
card are those of the file, not of a float32 model that nobody gets.

This file stands alone (PyTorch and safetensors, nothing of graphkit), because it is run where
graphkit may not be installed.
"""

# PyTorch is not installed where the types are checked: its classes and decorators are Any there.
# mypy: disallow-subclassing-any=False, disallow-untyped-decorators=False

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import sysconfig
import time
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# 1,925,184 parameters, 3,850,368 bytes in bfloat16: under the 4 MB that the repository allows.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 480,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "num_attention_heads": 6,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "factor": 2.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 256,
        "rope_type": "llama3",
    },
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 256,
}

FILE_SEPARATOR = b"\x00"  # between files; no Python source file holds a zero byte
HELD_OUT_ONE_IN = 40  # files, chosen by a checksum of their path: the same ones on every machine
SAMPLE_PROMPTS = ("def ", "class ", "import ")
# Tables and text that is not Python: they would teach a small model to count, not to write.
LEFT_OUT_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"}
LARGEST_FILE = 400_000  # bytes; what is larger is generated


def read_corpus(limit: int | None = None) -> tuple[bytes, bytes, int]:
    """Read the standard library's source files.

    Args:
        limit: stop after this many bytes; None reads all.

    Returns:
        training bytes, held-out bytes, number of files.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    parts: dict[bool, list[bytes]] = {False: [], True: []}
    files = total = 0
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if LEFT_OUT_FOLDERS & set(inside.parts):
            continue
        try:
            text = path.read_bytes()
            text.decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # deliberately broken test files
        if not text or len(text) > LARGEST_FILE or FILE_SEPARATOR in text:
            continue
        held_out = zlib.crc32(inside.as_posix().encode()) % HELD_OUT_ONE_IN == 0
        parts[held_out].append(text.replace(b"\r\n", b"\n"))
        files += 1
        total += len(text)
        if limit is not None and total >= limit:
            break
    return FILE_SEPARATOR.join(parts[False]), FILE_SEPARATOR.join(parts[True]), files


def rotary_frequencies(config: dict[str, Any]) -> Tensor:
    """Compute the inverse frequencies, llama3-scaled, float32 of shape ``(head_dim / 2,)``."""
    dim = config["head_dim"]
    inverse = 1.0 / config["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    scaling = config["rope_scaling"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * inverse / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * inverse / scaling["factor"] + blend * inverse


class RMSNorm(nn.Module):
    """Scale to unit root mean square, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the half-split rotary embedding to ``x`` of shape (batch, heads, length, dim)."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Causal attention with grouped key and value heads."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, self.dim = config["hidden_size"], config["head_dim"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.q_proj = nn.Linear(hidden, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend; ``x`` is (batch, length, hidden)."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        merged: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        return merged


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the gated MLP to the last axis."""
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: dict[str, Any], dropout: float) -> None:
        super().__init__()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        # Only while training: the library is small, and without it a long run learns it by heart.
        self.dropout = nn.Dropout(dropout)
        self.input_layernorm = RMSNorm(hidden, eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(hidden, eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Apply attention and MLP, each around a residual."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        out: Tensor = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return out


class Body(nn.Module):
    """Embedding, layers and final norm; named ``model`` in a checkpoint."""

    def __init__(self, config: dict[str, Any], dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        layers = (Layer(config, dropout) for _ in range(config["num_hidden_layers"]))
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])


class Llama(nn.Module):
    """A Llama whose ``state_dict`` has Hugging Face's names."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: dict[str, Any], dropout: float) -> None:
        super().__init__()
        self.model = Body(config, dropout)
        positions = torch.arange(config["max_position_embeddings"], dtype=torch.float32)
        angles = torch.outer(positions, rotary_frequencies(config)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        deviation = config["initializer_range"]
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # What adds to the residual starts smaller, so that depth does not grow it.
                ends_branch = "o_proj" in name or "down_proj" in name
                scale = (2 * config["num_hidden_layers"]) ** -0.5 if ends_branch else 1.0
                nn.init.normal_(weight, std=deviation * scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of shape (batch, length, vocabulary)."""
        length = tokens.shape[1]
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        return functional.linear(self.model.norm(x), self.model.embed_tokens.weight)


def line_starts(corpus: Tensor) -> Tensor:
    """Find where lines begin: prompts do, so the training windows do too."""
    return torch.nonzero(corpus[:-1] == ord("\n")).flatten() + 1


@torch.no_grad()
def evaluate(model: nn.Module, corpus: Tensor, context: int, windows: int) -> float:
    """Return the mean loss in nats per byte over consecutive windows, in float32."""
    count = min(windows, (len(corpus) - 1) // context)
    total = 0.0
    for first in range(0, count, 64):
        rows = torch.arange(first, min(first + 64, count), device=corpus.device)
        at = rows[:, None] * context + torch.arange(context + 1, device=corpus.device)
        tokens = corpus[at].long()
        logits = model(tokens[:, :-1])
        total += functional.cross_entropy(
            logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
        ).item()
    return total / (count * context)


@torch.no_grad()
def write(model: nn.Module, prompt: str, count: int, temperature: float, device: str) -> str:
    """Continue ``prompt`` by ``count`` bytes; temperature 0 is greedy."""
    tokens = list(prompt.encode())
    generator = torch.Generator(device=device).manual_seed(0)
    for _ in range(count):
        logits = model(torch.tensor([tokens], device=device))[0, -1].float()
        if temperature == 0.0:
            tokens.append(int(logits.argmax()))
        else:
            odds = torch.softmax(logits / temperature, 0)
            tokens.append(int(torch.multinomial(odds, 1, generator=generator)))
    return bytes(tokens).decode("utf-8", errors="replace")


MODEL_CARD = """\
# python-bytes: a small byte-level Llama that writes Python

{parameters:,} parameters in bfloat16 ({size:,} bytes), {layers} layers, hidden size {hidden},
{heads} heads over {kv_heads} key and value heads, context {context}, tied embeddings, llama3 rotary
scaling. One token is one byte of UTF-8 (vocabulary 256, no tokenizer file). Byte 0 stands between
files.

It is the default model of `graphkit generate`: small enough for a repository, and enough to show
that a decode through CUDA graphs writes text. It is of no other use.

| | nats per byte | bits per byte |
|---|---|---|
| training files | {train:.4f} | {train_bits:.4f} |
| held-out files | {held_out:.4f} | {held_out_bits:.4f} |

Both were measured after rounding to bfloat16, in windows of {context} bytes, computed in float32.
An untrained model has 8 bits per byte.

## Training

Written by `kernels/llama/train.py` on {date}: {steps:,} optimizer steps of
{batch} x {context} bytes ({tokens:,} bytes seen), dropout {dropout}, in {seconds:.0f} s
on {device}, PyTorch {torch}.

Data: {files:,} source files of the standard library of CPython {python} ({bytes:,} bytes),
as installed with the interpreter, without `encodings/`, `pydoc_data/` and generated tables. They
are Copyright (c) Python Software Foundation and others, under the PSF License Agreement
(https://docs.python.org/3/license.html). No other data was used. The weights are distributed under
the licence of this repository.

## Samples

{samples}
"""


def train(
    out: Path, seconds: float, batch: int, rate: float, dropout: float, limit: int | None
) -> None:
    """Train for ``seconds`` and write a Hugging Face model folder to ``out``."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    context = CONFIG["max_position_embeddings"]
    train_bytes, held_out_bytes, files = read_corpus(limit)
    if min(len(train_bytes), len(held_out_bytes)) <= context:
        raise SystemExit(f"too little text: {len(train_bytes)} and {len(held_out_bytes)} bytes")
    corpus = torch.frombuffer(bytearray(train_bytes), dtype=torch.uint8).to(device)
    held_out = torch.frombuffer(bytearray(held_out_bytes), dtype=torch.uint8).to(device)
    starts = line_starts(corpus)
    starts = starts[starts < len(corpus) - context - 1]
    print(
        f"{files} files, {len(corpus):,} bytes to train on, {len(held_out):,} held out", flush=True
    )

    model = Llama(CONFIG, dropout).to(device)
    parameters = sum(weight.numel() for weight in model.parameters())
    if parameters * 2 >= 4_000_000:
        raise SystemExit(f"{parameters:,} parameters are too many for 4 MB in bfloat16")
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.95),
        fused=device == "cuda",
    )
    offsets = torch.arange(context + 1, device=device)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(x)
        return functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())

    def batch_loss(function: Any) -> Tensor:
        first = starts[torch.randint(len(starts), (batch,), device=device)]
        tokens = corpus[first[:, None] + offsets].long()
        loss: Tensor = function(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        return loss

    function: Any = loss_of
    if device == "cuda":
        compiled = torch.compile(loss_of)
        try:  # a machine without a host compiler trains too, at half the speed
            batch_loss(compiled).backward()
            function = compiled
        except Exception as error:  # whatever a compiler raises, eager works
            print(f"torch.compile is of no use here ({type(error).__name__}: {error}): eager")
        optimizer.zero_grad(set_to_none=True)

    begin = time.perf_counter()
    steps = 0
    progress = 0.0
    while progress < 1.0:
        # The schedule runs on the clock, so that it ends when the time does.
        warm_up = min(1.0, (steps + 1) / 200)
        now = rate * warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = now
        loss = batch_loss(function)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
        if steps % 20 == 0 or device == "cpu":
            value = loss.item()  # waits for the device, so that the clock below is honest
            progress = (time.perf_counter() - begin) / seconds
            if steps % 1000 == 0:
                model.eval()
                other = evaluate(model, held_out, context, 256)
                model.train()
                print(f"{steps:6d} {progress:4.0%}  {value:.4f}  held out {other:.4f}", flush=True)
    spent = time.perf_counter() - begin

    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16).float())
    torch.set_float32_matmul_precision("highest")
    model.eval()
    windows = 2000 if device == "cuda" else 8
    train_loss = evaluate(model, corpus, context, windows)
    held_out_loss = evaluate(model, held_out, context, windows)
    bits = 1 / math.log(2)
    print(f"{steps} steps, {steps * batch * context:,} bytes, {spent:.0f} s")
    print(f"train    {train_loss:.4f} nats per byte, {train_loss * bits:.4f} bits per byte")
    print(f"held out {held_out_loss:.4f} nats per byte, {held_out_loss * bits:.4f} bits per byte")

    # The files first: a sample that fails must not cost the training.
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.to(torch.bfloat16).contiguous().cpu()
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors writes for its owner alone
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    generation = {"do_sample": False}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")

    length = 300 if device == "cuda" else 8
    samples = []
    for prompt in SAMPLE_PROMPTS:
        for temperature in (0.0, 0.7):
            text = write(model, prompt, length, temperature, device)
            title = "greedy" if temperature == 0.0 else f"temperature {temperature}"
            samples.append(f"`{prompt}`, {title}:\n\n```\n{text}\n```\n")
            print(f"--- {prompt!r}, {title}\n{text}", flush=True)
    card = MODEL_CARD.format(
        parameters=parameters,
        size=(out / "model.safetensors").stat().st_size,
        layers=CONFIG["num_hidden_layers"],
        hidden=CONFIG["hidden_size"],
        heads=CONFIG["num_attention_heads"],
        kv_heads=CONFIG["num_key_value_heads"],
        context=context,
        train=train_loss,
        train_bits=train_loss * bits,
        held_out=held_out_loss,
        held_out_bits=held_out_loss * bits,
        date=datetime.date.today().isoformat(),
        steps=steps,
        batch=batch,
        tokens=steps * batch * context,
        dropout=dropout,
        seconds=spent,
        device=torch.cuda.get_device_name() if device == "cuda" else "the CPU",
        torch=torch.__version__,
        files=files,
        python=platform.python_version(),
        bytes=len(train_bytes) + len(held_out_bytes),
        samples="\n".join(samples),
    )
    (out / "README.md").write_text(card)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seconds", type=float, default=150.0, help="time to train for")
    parser.add_argument("--batch", type=int, default=128, help="windows per optimizer step")
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--dropout", type=float, default=0.1, help="on both residual branches")
    parser.add_argument("--limit", type=int, default=None, help="read only this many bytes")
    given = parser.parse_args()
    train(given.out, given.seconds, given.batch, given.rate, given.dropout, given.limit)


if __name__ == "__main__":
    main()
