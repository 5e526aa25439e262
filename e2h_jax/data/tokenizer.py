"""Tokenizers: loading one, training a byte-level BPE, or building one from a list of words. All are fast tokenizers of
`transformers`, saved as its folders, so that any other tool reads them.

What stands in front of every prompt (`bos_ids`) and what ends a solution (`end_ids`) is decided here, for training, scoring,
sampling and reinforcement learning alike."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from e2h_jax.data.templates import Template
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
      A fast tokenizer with an EOS id; its pad id falls back to EOS; its BOS id may be None. `bos_ids` and `end_ids` know what
      the folder's other files say.

    Raises:
      UserError: there is no such folder or name, or what is there is damaged, or has no fast tokenizer or no EOS.
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
    except Exception as error:  # of a damaged file it may be any
        what = "the folder holds none that can be read" if local else "there is neither a folder nor a Hub entry of this name"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"tokenizer: cannot load {folder}; {what} ({reason}).") from error
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer: {folder} has no fast version, which the offsets of steps need; add its tokenizer.json.")
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer: {folder} defines no eos_token; set it in tokenizer_config.json.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # A model/ folder that does not say it is of an earlier version, which always put BOS in front: its model has learned that.
    model = path / "model.json"
    tokenizer.bos_rule = _read_json(model).get("bos", "always") if model.exists() else "tokenizer"
    tokenizer.generation_ends = _generation_ends(path / "generation_config.json")
    stated = _stated_bos(tokenizer, str(folder), local)
    if tokenizer.bos_rule == "tokenizer" and stated is not None and stated != bool(bos_ids(tokenizer)):
        tokenizer.add_bos_token = stated  # rewrites the post-processor
    return tokenizer


def bos_ids(tokenizer: Any, first: int | None = None) -> list[int]:
    """What stands in front of a prompt: what the tokenizer itself puts in front of a text, [BOS] or [].

    Args:
      first: the special token that the prompt begins with, None = text. A prompt that begins with BOS gets no second one.
    """
    if getattr(tokenizer, "bos_rule", "") == "always":
        return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoding = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True)
    marks = zip(encoding.ids, encoding.special_tokens_mask, encoding.attention_mask, strict=True)
    unpadded = ((index, special) for index, special, attended in marks if attended)
    found = [index for index, _ in takewhile(lambda mark: mark[1], unpadded)]
    return [] if found == [first] else found


def end_ids(tokenizer: Any, template: Template) -> tuple[int, ...]:
    """Ids at which a solution ends, EOS first: those of the generation config, and the template's stop texts that are tokens
    of their own (<|im_end|>, say). Decoders drop special tokens, so no text tells of them afterwards."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    others = {added[text] for text in template.stop if text in added} | set(getattr(tokenizer, "generation_ends", ()))
    return (tokenizer.eos_token_id, *sorted(others - {tokenizer.eos_token_id}))


def decode_solution(tokenizer: Any, tokens: Sequence[int], template: Template, ends: Sequence[int]) -> str:
    """The text of sampled tokens, up to a stop text: without the one of `ends` that ended it, and without special tokens."""
    tokens = tokens[:-1] if len(tokens) and tokens[-1] in ends else tokens
    return template.until_stop(tokenizer.decode(tokens, skip_special_tokens=True))


def _stated_bos(tokenizer: Any, folder: str, local: bool) -> bool | None:
    """Whether a text begins with BOS, said outside tokenizer.json, to which alone `transformers` listens; None = not said.

    The field `add_bos_token` says it, which its earlier versions obeyed; without a word, Llama's SentencePiece files meant yes.
    And tokenizers that our earlier versions made (`_save`) were used with BOS, without saying so.
    """
    if tokenizer.bos_token_id is None:
        return None
    path = Path(folder) / "tokenizer_config.json"
    if not local:
        import huggingface_hub

        cached = huggingface_hub.try_to_load_from_cache(folder, path.name)
        path = Path(cached) if isinstance(cached, str) else path
    stated = _read_json(path).get("add_bos_token") if path.is_file() else None
    if isinstance(stated, bool):
        return stated
    sentencepiece = path.with_name("tokenizer.model").exists() and not path.with_name("tokenizer.json").exists()
    return True if sentencepiece or tokenizer.convert_ids_to_tokens([0, 1, 2]) == [PAD, BOS, EOS] else None


def _generation_ends(path: Path) -> tuple[int, ...]:
    """The ids in `eos_token_id` of a generation config."""
    ids = _read_json(path).get("eos_token_id") if path.exists() else None
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise UserError(f"{path}: eos_token_id holds {token!r}; make it the id of a token, or a list of such ids.")
    return tuple(ids)


def _read_json(path: Path) -> dict:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); write it anew.") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} is damaged (it holds no object); write it anew.")
    return document


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
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(str(folder))
    return tokenizer
