"""Folders of the Hugging Face Hub: finding or downloading one, and reading and writing its safetensors one tensor at a time.

Pickle files (.bin, .pt, .pth) are never downloaded and never opened.
"""

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from e2h_jax.errors import UserError, nearest

TEXT_FILES = (  # what travels along with the weights, as it is
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
LFS = b"version https://git-lfs"  # first bytes of a Git LFS pointer
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def find(source: str, revision: str = "") -> Path:
    """The local folder `source`, or a download of the Hub's repository of that name.

    Raises:
      UserError: there is no such folder, or the Hub cannot be reached or does not give it.
    """
    path = Path(source)
    if path.is_dir():
        return path
    # "runs/modle" has the form of a Hub name; when there is a folder "runs", it is a misspelt folder.
    if path.parent.is_dir() or not _HUB_NAME.fullmatch(source):
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"config.source: there is no folder {source}{nearest(path.name, names)}.")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        patterns = ["config.json", "*.safetensors", INDEX, *TEXT_FILES]
        return Path(huggingface_hub.snapshot_download(source, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"config.source: {source} is no folder, and the Hub does not give it ({reason}).") from error


def check_whole(path: Path) -> None:
    """Raises UserError for a file that is empty, or that Git LFS has not fetched."""
    with open(path, "rb") as file:
        start = file.read(len(LFS))
    if not start:
        raise UserError(f"{path} is empty; download it again.")
    if start == LFS:
        raise UserError(f"{path} is a pointer of Git LFS, not the file itself; fetch it by `git lfs pull`.")


KINDS = {  # what a value may be, in words, and how that is seen
    "a whole number": lambda value: type(value) is int,
    "a whole number above 0": lambda value: type(value) is int and value > 0,
    "the id of a token": lambda value: type(value) is int and value >= 0,
    "a number": lambda value: type(value) in (int, float) and math.isfinite(value),
    "a number above 0": lambda value: type(value) in (int, float) and math.isfinite(value) and value > 0,
    "true or false": lambda value: type(value) is bool,
    "a text": lambda value: type(value) is str,
    "a list": lambda value: type(value) is list,
    "a list of texts": lambda value: type(value) is list and all(type(entry) is str for entry in value),
    "an object": lambda value: type(value) is dict,
    "an object of texts": lambda value: type(value) is dict and all(type(entry) is str for entry in value.values()),
}


def field(document: Mapping[str, Any], name: str, kind: str, where: object) -> Any:
    """A field of a JSON document, None where it is absent or null; UserError unless it is of this kind (`KINDS`)."""
    value = document.get(name)
    if value is not None and not KINDS[kind](value):
        raise UserError(f"{where}: {name} is {json.dumps(value)[:60]}, which is not {kind}.")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError when there is none."""
    try:
        check_whole(path)
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no {path.name}; a model of the Hub has one.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); download it again.") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} is damaged (it holds no object); download it again.")
    return document


def check_texts(source: Path) -> None:
    """Raises UserError where there is no tokenizer, or one of its files or the generation config is damaged."""
    if not any((source / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(
            f"{source} holds no tokenizer (tokenizer.json or tokenizer.model); put the model's own beside its weights."
        )
    for path in (source / name for name in TEXT_FILES if (source / name).exists()):
        read_json(path) if path.suffix == ".json" else check_whole(path)
    # tokenizer.model counts where it is alone; beside a tokenizer.json it may be of another library.
    known = (("tokenizer.json", _read_tokenizer), ("tokenizer.model", _read_pieces))
    for path, read in [(source / name, read) for name, read in known if (source / name).exists()][:1]:
        try:
            read(path)
        except Exception as error:  # neither library has a class of its own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{path} holds no tokenizer that can be read ({reason}); download it again.") from None


def _read_tokenizer(path: Path) -> int:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path)).get_vocab_size()


def _read_pieces(path: Path) -> int:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(path)).get_piece_size()


def copy_texts(source: Path, target: Path) -> None:
    """Copies tokenizer and generation config, after `check_texts`."""
    check_texts(source)
    for name in TEXT_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def write_generation(folder: Path, tokenizer: Any) -> None:
    """Writes a generation config if solutions end at other ids besides EOS, as the one that the tokenizer came with says."""
    ends = [index for index in getattr(tokenizer, "generation_ends", ()) if index != tokenizer.eos_token_id]
    if ends:
        ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
        text = json.dumps(ids | {"eos_token_id": [tokenizer.eos_token_id, *ends]}, indent=2)
        (folder / "generation_config.json").write_text(text + "\n", encoding="utf-8")


def special_ids(folder: Path) -> dict[str, Any]:
    """{"eos_token_id": …, …} of a folder: what its generation config says, and of what it does not say, the tokenizer's."""
    ids, special = {}, ("bos_token", "eos_token", "pad_token")
    if (path := folder / "tokenizer_config.json").exists() and (folder / "tokenizer.json").exists():
        added, texts = added_tokens(folder / "tokenizer.json"), read_json(path)
        for name in special:
            text = texts.get(name)
            text = field(text, "content", "a text", f"{path}: {name}") if isinstance(text, dict) else text
            ids[f"{name}_id"] = added.get(field({name: text}, name, "a text", path))
    if (path := folder / "generation_config.json").exists():
        generation = read_json(path)
        for name in (f"{name}_id" for name in special if f"{name}_id" in generation):
            ids[name] = token_ids(generation, name, path)
    return {name: value for name, value in ids.items() if value is not None}


def token_ids(document: Mapping[str, Any], name: str, where: object) -> int | list[int] | None:
    """A field with the id of a token or a list of such, None where it is absent or null; UserError for anything else."""
    value = document.get(name)
    for entry in value if isinstance(value, list) else [] if value is None else [value]:
        if not KINDS["the id of a token"](entry):
            raise UserError(f"{where}: {name} holds {json.dumps(entry)[:60]}, which is not the id of a token.")
    return value


def begin_with_bos(folder: Path) -> None:
    """Has the tokenizer in `folder` put its BOS, if it has one, in front of every text."""
    from tokenizers import Tokenizer, processors

    path, table = folder / "tokenizer_config.json", folder / "tokenizer.json"
    texts = read_json(path) if path.exists() else {}
    bos = texts.get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    if bos is None:
        return
    if table.exists():  # the only file that newer libraries listen to
        tokenizer = Tokenizer.from_file(str(table))
        index = tokenizer.token_to_id(bos)
        if tokenizer.encode("a").ids[:1] != [index]:
            put = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B:1", special_tokens=[(bos, index)])
            before = [tokenizer.post_processor] if tokenizer.post_processor else []
            tokenizer.post_processor = processors.Sequence([*before, put])
            tokenizer.save(str(table))
        elif texts.get("add_bos_token") is not False:
            return
    path.write_text(json.dumps(texts | {"add_bos_token": True}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def added_tokens(path: Path) -> dict[str, int]:
    """{text: id} of the tokens that a tokenizer.json lists beside its vocabulary."""
    tokens = field(read_json(path), "added_tokens", "a list", path) or []
    for token in tokens:
        if not KINDS["an object"](token) or type(token.get("content")) is not str or type(token.get("id")) is not int:
            raise UserError(f"{path}: added_tokens holds {json.dumps(token)[:60]}, which is no token with content and id.")
    return {token["content"]: token["id"] for token in tokens}


def largest_id(folder: Path) -> int | None:
    """The largest id that the tokenizer in `folder` can give: by tokenizer.json, else tokenizer.model; None without either."""
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        pieces = path.with_suffix(".model")
        return _read_pieces(pieces) - 1 if pieces.exists() else None
    vocabulary = (field(read_json(path), "model", "an object", path) or {}).get("vocab", {})
    if isinstance(vocabulary, list):  # of Unigram: a token's place is its id
        ids = [len(vocabulary) - 1]
    else:
        ids = list((field({"vocab": vocabulary}, "vocab", "an object", path) or {}).values())
        if wrong := next((value for value in ids if type(value) is not int), None):
            raise UserError(f"{path}: the vocabulary holds the id {wrong!r}, which is not a whole number.")
    return max([*ids, *added_tokens(path).values()], default=None)


class Entry(NamedTuple):
    """Where a tensor is, and what it is."""

    file: str
    shape: tuple[int, ...]
    dtype: np.dtype


class Checkpoint:
    """The safetensors of a folder, one file or shards: `entries` by name, and reading one at a time.

    Raises UserError when there are none, or a shard is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._files = {name: _open(folder / name) for name in _shards(folder)}
        self.entries: dict[str, Entry] = {}
        for file, handle in self._files.items():
            for name in handle.keys():
                tensor = handle.get_slice(name)
                if tensor.get_dtype() not in DTYPES:
                    raise UserError(f"{folder / file}: {name} is {tensor.get_dtype()}; only {', '.join(DTYPES)} are supported.")
                self.entries[name] = Entry(file, tuple(tensor.get_shape()), DTYPES[tensor.get_dtype()])

    def check(self, expected: dict[str, tuple[int, ...]], ignored: Sequence[str]) -> None:
        """Raises UserError unless the tensors are the `expected` ones (name to shape), but for those that match `ignored`."""
        found = {name for name in self.entries if not any(re.search(pattern, name) for pattern in ignored)}
        missing, extra = expected.keys() - self.entries.keys(), found - expected.keys()
        for names, what in ((missing, "lacks tensors that"), (extra, "holds tensors besides those that")):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise UserError(f"{self.folder} {what} its config.json calls for: {min(names)}{more}.")
        for name, shape in expected.items():
            if self.entries[name].shape != shape:
                raise UserError(
                    f"{self.folder / self.entries[name].file}: {name} has shape {self.entries[name].shape}, "
                    f"but by config.json it is {shape}."
                )

    def read(self, name: str, rows: int) -> np.ndarray:
        """The first `rows` rows of a tensor."""
        file = self._files[self.entries[name].file]
        return file.get_tensor(name) if rows == self.entries[name].shape[0] else file.get_slice(name)[:rows]


def _shards(folder: Path) -> list[str]:
    if (folder / INDEX).exists():
        where = field(read_json(folder / INDEX), "weight_map", "an object of texts", folder / INDEX)
        files = sorted(set((where or {}).values()))
        for name in files:
            if not (folder / name).exists():
                raise UserError(f"{folder / INDEX} names {name}, which is not there; download it again.")
        if files:
            return files
    if (folder / SINGLE).exists():
        return [SINGLE]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
    other = f" ({pickles[0]} is a pickle, which could run any code and is never opened)" if pickles else ""
    raise UserError(f"{folder} holds no {SINGLE} and no {INDEX}{other}; give the model as safetensors.")


def _open(path: Path) -> Any:
    try:
        check_whole(path)
        return safe_open(path, framework="numpy", backend="pread")  # mapped pages would count as memory
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or cut off ({error}); download it again.") from None


class Output(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(folder: Path, outputs: Sequence[Output], shard_bytes: float) -> Iterator[tuple[Output, Any]]:
    """Writes model.safetensors, or shards of at most `shard_bytes` and their index.

    Yields each output with a function that takes its array and writes it; call it before going on.
    """
    shards: list[list[Output]] = [[]]
    for output in outputs:
        if shards[-1] and sum(o.bytes for o in shards[-1]) + output.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(output)
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    names = [SINGLE] if len(shards) == 1 else names
    for name, shard in zip(names, shards, strict=True):
        with open(folder / name, "wb") as file:
            file.write(_header(shard))
            for output in shard:
                yield output, lambda array, output=output, file=file: _write_array(file, array, output)
    if len(shards) > 1:
        where = {output.name: name for name, shard in zip(names, shards, strict=True) for output in shard}
        index = {"metadata": {"total_size": sum(output.bytes for output in outputs)}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(shard: Sequence[Output]) -> bytes:
    """The beginning of a safetensors file: the length of a JSON text, and that text (https://github.com/huggingface/safetensors)."""
    codes, at, entries = {dtype: code for code, dtype in DTYPES.items()}, 0, {"__metadata__": {"format": "pt"}}
    for output in shard:
        entries[output.name] = {
            "dtype": codes[output.dtype],
            "shape": list(output.shape),
            "data_offsets": [at, at + output.bytes],
        }
        at += output.bytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text


def _write_array(file: Any, array: np.ndarray, output: Output) -> None:
    assert array.shape == output.shape, output
    file.write(np.ascontiguousarray(array, dtype=output.dtype).view(np.uint8).data)
