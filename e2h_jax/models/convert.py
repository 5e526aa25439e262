"""Weights in and out: a Hugging Face model becomes a model/ folder of ours, or one of ours a Hugging Face folder.

From disk to disk, one tensor at a time: no accelerator is needed, and never more memory than a few tensors. What goes in comes
out again bit for bit. The tokenizer and the generation config travel along. Supported models: docs/models.md.
"""

import contextlib
import ctypes
import dataclasses
import json
import math
import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tensorstore
from tqdm import tqdm

from e2h_jax.data.chat import format_of_source
from e2h_jax.errors import UserError
from e2h_jax.models import arrays, evaluators, hub, store
from e2h_jax.models.families import FAMILIES, check_types, read_config, write_config
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.models.tensors import Tensor, checkpoint_tensors, parameter_shapes

DTYPES = ("float32", "bfloat16", "float16")
# In checkpoints, but no parameters: tables that old versions of transformers stored.
IGNORED = (r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$", r"\.masked_bias$")
MADE = "converted.json"  # in the folder that is written: the config it was made by, and the summary


def defaults() -> ml_collections.ConfigDict:
    """Fields of the `convert` stage."""
    config = ml_collections.ConfigDict()
    config.source = ""  # a name on the Hub ("EleutherAI/llemma_7b"), a folder of safetensors, or (to export) a model/ folder
    config.to = "model"  # model: WORKDIR/model, for our stages | huggingface: WORKDIR/huggingface, for transformers and vLLM
    config.reward = ""  # import: as an evaluator of this kind (docs/models.md); "" = what its architecture says
    # Import: the text that the model reads, recorded in model.json; `template=chat` of the other stages is this. "" = chat, the
    # chat template of its own tokenizer, where there is one, and of an evaluator that of its kind; or a name or a .json file
    # (docs/data.md).
    config.template = ""
    config.system = ""  # of a chat template: the system text; "" = none is given, for which some have a text of their own
    # Of a chat template: what the user says besides the question: gsm8k | math (ready ones) or a text, behind the question or
    # around {question}.
    config.instruction = ""
    # Of a chat template: how solutions write the final answer, and it is found: boxed | header | inline | section | gsm8k |
    # sentence | last_number.
    config.answer = "boxed"
    config.revision = ""  # of the Hub's repository: a branch, tag or commit; "" = main
    # Of the weights written: float32 | bfloat16 | float16; "" = as they are. What is imported computes in it too (float16: in
    # bfloat16).
    config.dtype = ""
    config.vocab_size = 0  # import: keep so many rows of embedding and head (llemma_7b: 32016 there, 32000 in use); 0 = all
    config.remat = "full"  # import: what training recomputes: none | dots | full, see models/llama.py
    config.shard_gb = 5.0  # export: size of a file at most, in GB
    return config.lock()


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
    """Writes `workdir/model` or `workdir/huggingface`, whole or not at all; returns the summary.

    Raises UserError for whatever is missing, damaged or unsupported in the source, each in a sentence of its own.
    """
    check_values(config)
    target = Path(workdir) / config.to
    if target.exists():
        # Written by a run that was killed before the stage could be said to be done?
        made = hub.read_json(target / MADE) if (target / MADE).exists() else {}
        asked, summary = (hub.field(made, name, "an object", target / MADE) for name in ("config", "summary"))
        # An older version had fewer fields.
        if not asked or summary is None or _as_json(defaults()) | asked != _as_json(config):
            raise UserError(f"{target} is there already; delete it, or use another --workdir")
        return summary
    if jax.distributed.is_initialized():
        # Orbax lets all processes of a job write together: a process that knows of no job writes alone.
        alone = ProcessPoolExecutor(1, get_context("spawn"), _alone)
        try:
            return alone.submit(run, config, workdir).result()
        finally:
            alone.shutdown(wait=False)  # told to stop, this process ends at once, and the other with it
    return (_import if config.to == "model" else _export)(config, target)


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values that make no sense, before any file is read: a recipe asks all its stages first."""
    if not config.source:
        raise UserError("config.source is empty; name a model of the Hugging Face Hub or a folder")
    if config.to not in ("model", "huggingface"):
        raise UserError(f"config.to={config.to!r} must be model or huggingface")
    if config.dtype not in ("", *DTYPES):
        raise UserError(f"config.dtype={config.dtype!r} must be empty or one of {', '.join(DTYPES)}")
    if config.remat not in store.REMATS:
        raise UserError(f"config.remat={config.remat!r} must be one of {', '.join(store.REMATS)}")
    if config.shard_gb <= 0:
        raise UserError("config.shard_gb must be above 0")


def _alone() -> None:
    """Leaves the accelerators alone, and dies with its parent: what a run that follows writes is not to be met by it."""
    jax.config.update("jax_platforms", "cpu")
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _import(config: ml_collections.ConfigDict, target: Path) -> dict:
    folder = hub.find(config.source, config.revision)
    if (folder / "model.json").exists():
        raise UserError(f"{folder} is a model/ folder already; to export it, set config.to=huggingface")
    text = hub.read_json(folder / "config.json")
    check_types(text, str(folder / "config.json"))  # the evaluator is chosen by them, and `read_config` asks which it is
    evaluator = evaluators.choose(config.reward, text)
    own = {"classes": evaluator.classes, "own_code": evaluator.own_code} if evaluator else {}
    stored_config = read_config(text, str(folder / "config.json"), **own)
    rows = config.vocab_size or stored_config.vocab_size
    if not 0 < rows <= stored_config.vocab_size:
        raise UserError(f"config.vocab_size={rows} must be 0 (all) or at most the model's {stored_config.vocab_size}")
    model_config = dataclasses.replace(stored_config, vocab_size=rows, remat=config.remat)
    if config.dtype:
        model_config = dataclasses.replace(model_config, dtype="float32" if config.dtype == "float32" else "bfloat16")
    _check_tokenizer(folder, model_config, config.vocab_size)
    asked = (config.template, config.system, config.instruction, config.answer)
    template = format_of_source(folder, *asked, own=evaluator.template if evaluator else None)
    generation = folder / "generation_config.json"  # without it config.json tells what ends a solution
    said, where = (hub.read_json(generation), generation) if generation.exists() else (text, folder / "config.json")
    ends = hub.token_ids(said, "eos_token_id", where)

    checkpoint = hub.Checkpoint(folder)
    kind, head, head_tensors = "policy", {}, {}
    if evaluator:  # a trunk without language-model head, whose rows are in the score head where they count
        source = evaluators.Source(folder, text, stored_config, checkpoint)
        kind, head, head_tensors = "reward", evaluators.read_head(evaluator, source), source.used
        score_width = head["score_hidden"].shape[1] if "score_hidden" in head else 0
        model_config = dataclasses.replace(model_config, lm_head=False, score_width=score_width)
    parameters = parameter_shapes(store.abstract(kind, model_config)[1])
    trunk = {name: leaf for name, leaf in parameters.items() if name not in head}
    checkpoint.check(
        {tensor.name: tensor.shape for tensor in checkpoint_tensors(stored_config, trunk)} | head_tensors,
        [*IGNORED, *(["^lm_head.weight$"] if stored_config.tie_embeddings or evaluator else [])],
    )
    tensors = list(checkpoint_tensors(model_config, trunk))
    tensors.sort(key=lambda tensor: checkpoint.entries[tensor.name].file)  # files one after the other
    dtypes: dict[str, np.dtype] = {}
    for tensor in tensors:  # a parameter whose layers differ takes the wider type
        dtype = checkpoint.entries[tensor.name].dtype
        dtypes[tensor.parameter] = jnp.promote_types(dtypes.get(tensor.parameter, dtype), dtype)
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, config.dtype or dtypes[name]) for name, leaf in trunk.items()}
    shapes |= {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in head.items()}
    summary = {
        "kind": kind,
        "family": model_config.family,
        "parameters": sum(math.prod(leaf.shape) for leaf in parameters.values()),
    }
    with _written_whole(target, config, summary) as partial:
        hub.copy_texts(folder, partial)
        if ends is not None and not generation.exists():
            (partial / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}) + "\n")
        written = arrays.create(partial / "params", shapes)
        for name, array in head.items():
            arrays.write(written[name], array)
        for tensor in _progress(tensors, tensors, "import"):
            place = _place(written, tensor)
            # No name for the tensor, which would keep it until the next one is read.
            arrays.write(
                place, tensor.to_ours(checkpoint.read(tensor.name, tensor.shape[0])).astype(place.dtype.numpy_dtype, copy=False)
            )
        reads = {"template": template} if template else {}
        store.save_description(partial, kind, model_config, reads | ({"read_at": evaluator.read_at} if evaluator else {}))
    return summary


def _check_tokenizer(folder: Path, model_config: LlamaConfig, cropped: int) -> None:
    """Raises UserError unless the folder's tokenizer can be read, and the model has an embedding of each of its ids."""
    hub.check_texts(folder)
    largest = hub.largest_id(folder)
    if cropped and largest is not None and largest >= cropped:
        raise UserError(f"config.vocab_size={cropped} cuts off ids of the tokenizer, which go up to {largest}; raise it")
    store.check_ids(largest, model_config, folder)


def _export(config: ml_collections.ConfigDict, target: Path) -> dict:
    folder = Path(config.source)
    kind, model_config = store.load_config(folder)
    stored = arrays.open_arrays(folder / "params")
    parameters = {name: jax.ShapeDtypeStruct(array.shape, array.dtype.numpy_dtype) for name, array in stored.items()}
    if kind == "reward":  # transformers has no place for the head that the auxiliary loss uses
        parameters.pop("trunk.lm_head", None)
        if model_config.score_width:
            raise UserError(
                f"{folder} has a score head of two layers, for which transformers has no class; it is not exported."
            )
        model_config = dataclasses.replace(model_config, lm_head=True)
    tensors = list(checkpoint_tensors(model_config, parameters))
    dtype = {tensor.parameter: np.dtype(config.dtype or parameters[tensor.parameter].dtype) for tensor in tensors}
    outputs = [hub.Output(tensor.name, tensor.shape, dtype[tensor.parameter]) for tensor in tensors]
    summary = {"family": model_config.family, "parameters": sum(math.prod(output.shape) for output in outputs)}
    with _written_whole(target, config, summary) as partial:
        hub.copy_texts(folder, partial)
        if store.bos_rule(folder) == "always":
            hub.begin_with_bos(partial)  # an earlier version's model, whatever its tokenizer does by itself
        special = hub.special_ids(folder)
        if not (partial / "generation_config.json").exists():
            (partial / "generation_config.json").write_text(json.dumps(special, indent=2) + "\n")
        classes = FAMILIES[model_config.family].classes
        text = write_config(model_config) | special | {"torch_dtype": max(dtype.values(), key=lambda d: d.itemsize).name}
        if kind == "policy":
            text["architectures"] = [f"{classes}ForCausalLM"]
        else:
            text |= {"architectures": [f"{classes}ForTokenClassification"], "classifier_dropout": 0.0}
            text |= {"id2label": {"0": "score"}, "label2id": {"score": 0}}
        (partial / "config.json").write_text(json.dumps(text, indent=2) + "\n")
        by_name = {tensor.name: tensor for tensor in tensors}
        for output, write in _progress(outputs, hub.write(partial, outputs, config.shard_gb * 1e9), "export"):
            tensor = by_name[output.name]
            write(tensor.to_theirs(_place(stored, tensor).read().result()))
    return summary


@contextlib.contextmanager
def _written_whole(target: Path, config: ml_collections.ConfigDict, summary: dict) -> Iterator[Path]:
    """A folder to write into that becomes `target` in the end, or nothing."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    try:
        (partial / MADE).write_text(json.dumps({"config": _as_json(config), "summary": summary}, indent=2) + "\n")
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(target)


def _as_json(config: ml_collections.ConfigDict) -> dict:
    return json.loads(config.to_json())


def _place(stored: dict[str, tensorstore.TensorStore], tensor: Tensor) -> tensorstore.TensorStore:
    """Where in our folder the tensor is: a parameter, or a layer of one."""
    return stored[tensor.parameter] if tensor.layer is None else stored[tensor.parameter][tensor.layer]


def _progress(tensors: Sequence[Tensor | hub.Output], steps: Iterable[Any], what: str) -> Iterator[Any]:
    """Goes through `steps`, one for each of the tensors, with a bar that counts their weights."""
    sizes = [math.prod(tensor.shape) for tensor in tensors]
    with tqdm(total=sum(sizes), unit=" weights", unit_scale=True, desc=what) as bar:
        for size, step in zip(sizes, steps, strict=True):
            yield step
            bar.update(size)
