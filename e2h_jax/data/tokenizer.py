"""Tokenizers: loading one, training a byte-level BPE, or building one from a list of words. All are fast tokenizers of
`transformers`, saved as its folders, so that any other tool reads them."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from e2h_jax.errors import UserError, nearest

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def _transformers() -> Any:
    """Imported when first needed: it takes a second, and without PyTorch it says so on stderr each time."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


def load_tokenizer(folder: str | Path) -> Any:
    """Loads a tokenizer from a folder, or from the Hugging Face Hub by name ("EleutherAI/llemma_7b").

    Returns:
      A fast tokenizer with an EOS id; its pad id falls back to EOS; its BOS id may be None.

    Raises:
      UserError: there is no such folder or name, or what is there has no fast tokenizer or no EOS.
    """
    if not str(folder):
        raise UserError("tokenizer: none is given; name a folder that holds one, or a model of the Hugging Face Hub.")
    path = Path(folder)
    local = path.is_dir()
    # "runs/tokenizr" has the form of a Hub name; when there is a folder "runs", it is a misspelt folder.
    if not local and (path.parent.is_dir() or not _HUB_NAME.fullmatch(str(folder))):
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"tokenizer: there is no folder {folder}{nearest(path.name, names)}.")
    try:
        tokenizer = _transformers().AutoTokenizer.from_pretrained(str(folder), local_files_only=local)
    except Exception as error:  # the tokenizers library has no class of its own
        what = "the folder holds none that can be read" if local else "there is neither a folder nor a Hub entry of this name"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"tokenizer: cannot load {folder}; {what} ({reason}).") from error
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer: {folder} has no fast version, which the offsets of steps need; add its tokenizer.json.")
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer: {folder} defines no eos_token; set it in tokenizer_config.json.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_vocab_size(size: int) -> None:
    """Raises UserError unless a BPE of this size has room for the 256 bytes and the special tokens."""
    if size < 256 + len((PAD, BOS, EOS)):
        raise UserError(f"vocab_size: must be at least 259 (all bytes and special tokens), not {size}.")


def train_bpe(texts: Iterable[str], vocab_size: int, folder: str | Path) -> Any:
    """Trains a byte-level BPE on texts, saves it to `folder` and returns it.

    Runs of newlines are words of their own and digits stand alone. Any text encodes, and decodes to itself. Ids: 0 pad,
    1 BOS, 2 EOS. The same texts give the same tokenizer.

    Raises:
      UserError: `vocab_size` has no room for the 256 bytes and the special tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    check_vocab_size(vocab_size)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _save(backend, folder, unk_token=None)


def build_tokenizer(pieces: Sequence[str], folder: str | Path) -> Any:
    """Builds a tokenizer whose words are exactly `pieces`, saves it to `folder` and returns it.

    At each place the longest piece that fits is taken. Ids: 0 pad, 1 BOS, 2 EOS, 3 unknown, then the pieces in their
    order. A text made of pieces decodes to itself; every other character becomes one unknown token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    special = [PAD, BOS, EOS, UNK]
    if len(set(pieces)) != len(pieces) or "" in pieces or set(pieces) & set(special):
        raise ValueError("pieces must be distinct, not empty, and none of the special tokens")
    vocabulary = {word: index for index, word in enumerate([*special, *pieces])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    # The last alternative cuts the rest into single characters, so that "</s>" in a text never meets the word "</s>".
    alternatives = [re.escape(piece) for piece in sorted(pieces, key=len, reverse=True)]
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*alternatives, r"[\s\S]"])), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(special)
    return _save(backend, folder, unk_token=UNK)


def _save(backend: Any, folder: str | Path, unk_token: str | None) -> Any:
    tokenizer = _transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=unk_token,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(str(folder))
    return tokenizer
