"""Tokenizers of many kinds, built once per test process."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from e2h_jax.data.tokenizer import build_tokenizer, load_tokenizer, train_bpe

PIECES = (
    "# Question\n\n",
    "\n\n# Solution\n\n",
    "# Answer\n\n",
    "\n\n",
    *"abcdefghijklmnopqrstuvwxyz0123456789+-*=.;# \n",
)

TEXTS = [
    f"# Question\n\nWhat is {a} + {b}?\n\n# Solution\n\nWe add {a} and {b}.\n\nSo it is {a + b}.\n\n# Answer\n\n{a + b}"
    for a in range(12)
    for b in range(12)
]


def greedy_bpe(normalizer: normalizers.Normalizer | None = None) -> object:
    """A byte-level BPE without any pre-tokenisation: it merges whatever is frequent, newlines and all."""
    backend = Tokenizer(models.BPE())
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return _fast(backend)


def sentencepiece_like() -> object:
    """As Llama 2's: a dummy space in front, spaces as U+2581, unknown characters as bytes, no merges across words."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    backend.train_from_iterator([text.replace("\n", "") for text in TEXTS], trainer)
    return _fast(backend)


def _fast(backend: Tokenizer) -> object:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


class Kinds(SimpleNamespace):
    def __repr__(self) -> str:
        return "tokenizers"  # what hypothesis prints of them is long


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """`words` (word-level, of `pieces`), `bpe` (byte-level, trained on `texts`), `greedy` (merges across newlines), `composed`
    (as greedy, but its text is composed first, as Qwen's), `bytes` (SentencePiece with byte fallback)."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return Kinds(
        pieces=PIECES,
        texts=TEXTS,
        words=build_tokenizer(PIECES, folder / "words"),
        bpe=train_bpe(TEXTS, 400, folder / "bpe"),
        greedy=greedy_bpe(),
        composed=greedy_bpe(normalizers.NFC()),
        bytes=sentencepiece_like(),
    )


@pytest.fixture(scope="session")
def llama2(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    """The SentencePiece tokenizer of Llama 2 (byte fallback, dummy prefix)."""
    file = shared_data / "tokenizers" / "llama2_tokenizer.model"
    if not file.is_file():
        pytest.skip(f"no {file}")
    folder = tmp_path_factory.mktemp("llama2")
    shutil.copyfile(file, folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return load_tokenizer(folder)
