"""Text to tokens and back: bytes for a vocabulary of 256, else the model's own tokenizer.json."""

# The folder is graphkit.kernels when installed and kernels when its types are checked.
# ruff: noqa: TID252
from __future__ import annotations

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..launch import instance, integer
from .checkpoint import CheckpointError, path_of

__all__ = ["ByteTokenizer", "FileTokenizer", "TextStream", "Tokenizer", "load_tokenizer"]


class TextStream(Protocol):
    """Turns tokens into text as they come; text of a token may come with a later one."""

    def push(self, token: int) -> str:
        """Take one token; return the text that is complete now, often its own, maybe empty."""

    def finish(self) -> str:
        """Return what is left, incomplete characters as U+FFFD."""


class Tokenizer(Protocol):
    """What generation needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""

    def stream(self) -> TextStream:
        """Return a new stream for the tokens of one text."""


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes((token,)))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    """One token is one byte of UTF-8."""

    vocab_size = 256

    def encode(self, text: str) -> list[int]:
        """Return the bytes of the text.

        Bytes that Python could not decode on the way in (as surrogates, in a command line) are
        given back as they were.
        """
        return list(instance("text", text, str).encode("utf-8", errors="surrogateescape"))

    def stream(self) -> TextStream:
        """Return a stream that holds back a character until its last byte has come."""
        return _ByteStream()


class _FileStream:
    """Decodes from the last complete text on, because a token's text can depend on the one before.

    The same way as ``transformers``' TextStreamer: a tail that ends in U+FFFD is incomplete.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._begin = 0  # where decoding starts, so that the first new token has its neighbour
        self._written = 0  # tokens whose text has been given out

    def _text(self, begin: int, end: int) -> str:
        return str(self._tokenizer.decode(self._tokens[begin:end], skip_special_tokens=True))

    def push(self, token: int) -> str:
        self._tokens.append(token)
        return self._new(final=False)

    def finish(self) -> str:
        return self._new(final=True)

    def _new(self, final: bool) -> str:
        before = self._text(self._begin, self._written)
        after = self._text(self._begin, len(self._tokens))
        if not final and after.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._begin, self._written = self._written, len(self._tokens)
        return after[len(before) :]


class FileTokenizer:
    """The ``tokenizer.json`` of a model folder, through Hugging Face's ``tokenizers``.

    Args:
        path: the file.

    Raises:
        TypeError: ``path`` is none.
        CheckpointError: ``tokenizers`` is not installed, or the file is not a tokenizer's.
    """

    def __init__(self, path: str | Path) -> None:
        path = path_of("path", path)
        try:
            import tokenizers
        except ImportError:
            raise CheckpointError(
                f"{path.name}: expected the package tokenizers to read it, it is not installed: "
                "pip install -e '.[hf]' in the checkout"
            ) from None
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path.name}: expected a tokenizer, came {error}") from error
        self.vocab_size = int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Return the tokens of the text, with the special ones that the file adds."""
        tokens: Sequence[int] = self._tokenizer.encode(text).ids
        return list(tokens)

    def stream(self) -> TextStream:
        """Return a stream that holds back text until it no longer depends on the next token."""
        return _FileStream(self._tokenizer)


def load_tokenizer(folder: str | Path, vocab_size: int) -> Tokenizer:
    """Return the tokenizer of a model folder.

    Args:
        folder: the model folder; its tokenizer.json is used where there is one.
        vocab_size: the model's; without a tokenizer.json it must be 256.

    Raises:
        TypeError: an argument of another type.
        CheckpointError: there is no tokenizer for this model, or it cannot be read.
    """
    path = path_of("folder", folder) / "tokenizer.json"
    vocab_size = integer("vocab_size", vocab_size)
    if path.is_file():
        tokenizer = FileTokenizer(path)
        if tokenizer.vocab_size > vocab_size:
            raise CheckpointError(
                f"{path.name}: expected at most the model's {vocab_size} tokens, "
                f"came {tokenizer.vocab_size}"
            )
        return tokenizer
    if vocab_size == ByteTokenizer.vocab_size:
        return ByteTokenizer()
    raise CheckpointError(
        f"{path.name}: expected in {folder} for a vocabulary of {vocab_size}, it is missing"
    )
