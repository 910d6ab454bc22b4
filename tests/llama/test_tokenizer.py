"""Tokenizers: bytes, and the file of a model."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from graphkit.kernels.llama import ByteTokenizer, CheckpointError, FileTokenizer, load_tokenizer
from hypothesis import given
from hypothesis import strategies as st


def streamed(tokenizer, tokens):
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokens]
    return pieces, stream.finish()


# Surrogates are no text: no encoding has them.
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_there_and_back(text):
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(text)
    assert bytes(tokens) == text.encode()
    pieces, rest = streamed(tokenizer, tokens)
    assert "".join(pieces) + rest == text


@given(st.lists(st.integers(0, 255)))
def test_any_bytes_give_text(tokens):
    pieces, rest = streamed(ByteTokenizer(), tokens)
    assert "".join(pieces) + rest == bytes(tokens).decode("utf-8", errors="replace")


def test_a_character_comes_with_its_last_byte():
    pieces, rest = streamed(ByteTokenizer(), "aü".encode())
    assert pieces == ["a", "", "ü"]
    assert rest == ""
    pieces, rest = streamed(ByteTokenizer(), "ü".encode()[:1])
    assert pieces == [""]
    assert rest == "\N{REPLACEMENT CHARACTER}"


def test_undecodable_bytes_of_a_command_line_are_kept():
    assert ByteTokenizer().encode("a\udcff") == [97, 255]


def test_256_tokens_without_a_file_are_bytes(tmp_path):
    assert isinstance(load_tokenizer(tmp_path, 256), ByteTokenizer)


def test_another_vocabulary_needs_a_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: expected in .* of 32000"):
        load_tokenizer(tmp_path, 32000)


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(CheckpointError, match=r"pip install -e '\.\[hf\]'"):
        load_tokenizer(tmp_path, 32000)


class WordTokenizer:
    """What the package tokenizers offers, of words: the first word of a text has no space."""

    words = ("def", "return", "x", "\N{REPLACEMENT CHARACTER}")

    @classmethod
    def from_file(cls, path):
        if Path(path).read_text() == "broken":
            raise Exception("expected value at line 1")  # as bare as the package's own
        return cls()

    def get_vocab_size(self):
        return len(self.words)

    def encode(self, text):
        encoding = ModuleType("encoding")
        encoding.ids = [self.words.index(word) for word in text.split()]
        return encoding

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return " ".join(self.words[i] for i in ids)


@pytest.fixture
def word_tokenizer(tmp_path, monkeypatch):
    module = ModuleType("tokenizers")
    module.Tokenizer = WordTokenizer
    monkeypatch.setitem(sys.modules, "tokenizers", module)
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def test_a_file_is_read_by_tokenizers(word_tokenizer):
    tokenizer = load_tokenizer(word_tokenizer, 10)
    assert tokenizer.encode("def x") == [0, 2]
    pieces, rest = streamed(tokenizer, [0, 2, 1])
    assert pieces == ["def", " x", " return"]
    assert rest == ""


def test_text_that_is_not_complete_yet_is_held_back(word_tokenizer):
    tokenizer = load_tokenizer(word_tokenizer, 10)
    pieces, rest = streamed(tokenizer, [0, 3])
    assert pieces == ["def", ""]
    assert rest == " \N{REPLACEMENT CHARACTER}"


def test_a_file_with_more_tokens_than_the_model(word_tokenizer):
    with pytest.raises(CheckpointError, match="at most the model's 2 tokens, came 4"):
        load_tokenizer(word_tokenizer, 2)


def test_a_broken_file(word_tokenizer):
    (word_tokenizer / "tokenizer.json").write_text("broken")
    with pytest.raises(CheckpointError, match="expected a tokenizer, came expected value"):
        load_tokenizer(word_tokenizer, 10)


def test_arguments_of_other_types(tmp_path):
    for make, says in (
        (lambda: load_tokenizer(None, 256), "folder: expected a path, came NoneType"),
        (lambda: load_tokenizer(tmp_path, "256"), "vocab_size: expected an int, came str"),
        (lambda: FileTokenizer(5), "path: expected a path, came int"),
        (lambda: ByteTokenizer().encode(b"a"), "text: expected a str, came bytes"),
    ):
        with pytest.raises(TypeError, match=f"^{says}$"):
            make()
