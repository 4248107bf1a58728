"""Tokenizers: a byte-level BPE trained on a sample, or the user's own tokenizer.json, and what shards need to know.

Every document is preceded by the end-of-text token, and no document can spell it out.
"""

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from agent.failures import CorpusError
from hwprofiles.value import Value

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # the 256 bytes and end-of-text
_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>", "[EOS]")

TokenDtype = Literal["uint16", "uint32"]


class Vocabulary(Value):
    """What shards say of the tokenizer they were written with."""

    tokenizer_sha256: str
    vocab_size: int
    """One above the largest token id."""
    end_of_text_id: int

    @property
    def dtype(self) -> TokenDtype:
        """The smallest of the two kinds of integer that shards are made of."""
        return "uint16" if self.vocab_size <= 2**16 else "uint32"


def require_vocabulary(vocab_size: int) -> None:
    """A CorpusError where a byte-level BPE cannot be so small."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise CorpusError(
            f"vocab_size {vocab_size} is too small; expected at least {SMALLEST_VOCABULARY} (bytes and one)"
        )


def train_bpe(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """Train a byte-level BPE of exactly this vocabulary, end-of-text included.

    Raises:
        CorpusError: the vocabulary is too small for bytes, or there is too little text for it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    require_vocabulary(vocab_size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise CorpusError(
            f"there is too little text for a vocabulary of {vocab_size}: the BPE found {tokenizer.get_vocab_size()} "
            "tokens; lower vocab_size or name a directory with more text"
        )
    # A document that spells out the end-of-text mark must not end itself.
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenizer_json(tokenizer: "Tokenizer") -> bytes:
    """tokenizer.json with its keys in order: the library's own order is not promised to be stable."""
    return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, ensure_ascii=False).encode()


@lru_cache(maxsize=1)
def load_tokenizer(path: Path) -> "Tokenizer":
    """Read a tokenizer.json for encoding whole documents: nothing is cut, padded or added.

    Raises:
        CorpusError: there is no such file, or it is no tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CorpusError(f"the tokenizer {path} cannot be read: {error.strerror}; expected a tokenizer.json") from None
    except Exception as error:  # the library raises bare Exceptions
        raise CorpusError(f"{path} is no tokenizer: {error}; expected a tokenizer.json of Hugging Face's") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def describe_vocabulary(path: Path, *, end_of_text: str | None = None) -> Vocabulary:
    """The vocabulary of a tokenizer.json; `end_of_text` names the token where it has none of the usual names.

    Raises:
        CorpusError: it is no tokenizer, or has no such token.
    """
    vocabulary: dict[str, int] = load_tokenizer(path).get_vocab(with_added_tokens=True)
    names = (end_of_text,) if end_of_text is not None else _END_NAMES
    found = next((name for name in names if name in vocabulary), None)
    if found is None:
        raise CorpusError(
            f"{path} has no token {' or '.join(names)}; name the token that ends a document with --end-of-text"
        )
    return Vocabulary(
        tokenizer_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        vocab_size=1 + max(vocabulary.values()),
        end_of_text_id=vocabulary[found],
    )


def encode_documents(
    texts: list[str], tokenizer: "Tokenizer", *, end_of_text_id: int, dtype: str
) -> list[NDArray[np.unsignedinteger]]:
    """The tokens of each document, the end-of-text token first."""
    little_endian = np.dtype(dtype).newbyteorder("<")
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array([end_of_text_id, *each.ids], dtype=little_endian) for each in encoded]


def token_num_bytes(path: Path) -> NDArray[np.int64] | None:
    """UTF-8 bytes of text that each token of a byte-level tokenizer stands for, shape (vocabulary,); else None.

    A byte-level token is written with one character a byte. Special tokens stand for no text.
    """
    tokenizer = load_tokenizer(path)
    table = json.loads(tokenizer.to_str())
    if "ByteLevel" not in json.dumps(table.get("decoder")):
        return None
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    num_bytes = np.zeros(1 + max(vocabulary.values()), dtype=np.int64)
    for token, number in vocabulary.items():
        num_bytes[number] = len(token)
    for added in table.get("added_tokens", ()):
        num_bytes[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    return num_bytes
