"""Supervised fine-tuning: next-token prediction on solutions (and pre-training, with `train_on_prompt` and no `init`).

Reads problem records whose `solution` is filled in (a `prefix` before it is read, not trained on; `eos` false = it does not end
there), tokenises prompt and solution in the project's text format, packs them into
rows and trains with AdamW. Writes `model/`, ready for `sample` or for the next stage's `init`.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
from flax import nnx
from jax.sharding import Mesh

from e2h_jax.data.batches import BLANK, language_model_example
from e2h_jax.data.chat import policy_template
from e2h_jax.data.steps import encode_continuations
from e2h_jax.data.templates import as_record, get_template
from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.models import lora, store
from e2h_jax.models.attention import packed_causal
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.models.presets import get_preset
from e2h_jax.parallel.programs import Assumed, Program
from e2h_jax.sampling.prompts import show_first
from e2h_jax.training import loop, losses
from e2h_jax.training.examples import discard, read_examples


def defaults() -> ml_collections.ConfigDict:
    """Fields of the `sft` stage (on top of the training loop's)."""
    config = loop.defaults()
    config.init = ""  # model/ folder to start from; "" = random weights of `preset`
    config.preset = "micro"  # shape when init is "", see models/presets.py
    config.tokenizer = ""  # tokenizer folder when init is ""
    config.data = ""  # problem records with solutions
    config.levels = ()  # train on these levels only; () = all
    config.template = "e2h"  # text format, see data/templates.py; chat = the one that the model's model.json records
    config.train_on_prompt = False  # True: the question's tokens are targets too (pre-training)
    config.limit = 0  # train on the first so many records of these levels; 0 = all
    config.dtype = ""  # compute dtype: float32 | bfloat16; "" = float32 on CPUs, the model's own on accelerators
    config.too_long = "drop"  # examples longer than `length`: drop (and count) | error
    config.lora = lora.defaults()
    return config.lock()


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
    """Trains and writes `workdir/model`; returns the summary. Raises UserError for bad data or a mesh that does not fit."""
    workdir = Path(workdir)
    check_values(config)
    mesh = loop.mesh_of(config, store.load_config(config.init)[1].width if config.init else get_preset(config.preset)["width"])

    # The model: a checkpoint, or a fresh one of the preset's shape with the tokenizer's vocabulary.
    if config.init:
        tokenizer = load_tokenizer(config.init)
        template = policy_template(config.template, config.init, tokenizer, tell=jax.process_index() == 0)
        dtype = loop.begun_dtype(workdir, config, Path(config.init), mesh)
        graph, model_config, params, frozen = lora.load(config, mesh, "policy", dtype=dtype)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
        template = get_template(config.template, config.tokenizer, tokenizer)
        largest = max(tokenizer.get_vocab().values())
        model_config = _fresh(config, largest + 1)
        store.check_ids(largest, model_config, config.tokenizer)
        dtype = loop.begun_dtype(workdir, config, store.Described("policy", model_config), mesh)
        computing = dataclasses.replace(model_config, dtype=dtype)
        (graph, params), frozen = store.create("policy", computing, mesh, config.seed), None

    # The data: one example per solution, EOS at its end.
    def make(problems, _):
        encoded = encode_continuations(tokenizer, problems, template)
        show_first(tokenizer, [one.tokens[: one.prompt_length] for one in encoded[:1]], template)
        return [
            language_model_example(solution, config.train_on_prompt, problem.get("eos", True)) if problem["solution"] else None
            for problem, solution in zip(problems, encoded, strict=True)
        ]

    examples = read_examples(config, workdir, "problem", make)
    if not examples:
        raise UserError(f"config.data={config.data} holds no problem with a solution to train on")
    examples, dropped = loop.fit_length(examples, config.length, config.too_long, model_config.max_length)

    params, summary = loop.fit(workdir, config, mesh, params, make_loss(graph), examples, frozen)
    lora.save(workdir, config, mesh, "policy", model_config, params, tokenizer, {"template": as_record(template)})
    discard(workdir)
    return summary | {
        "parameters": store.count_parameters((params, frozen)),
        "trained_parameters": store.count_parameters(params),
        "examples": len(examples),
        "dropped": dropped,
        "tokens": sum(len(example["tokens"]) for example in examples),
    }


def programs(config: ml_collections.ConfigDict, mesh: Mesh, assumed: Assumed) -> Iterator[Program]:
    """The programs that `run` compiles, see parallel/programs.py."""
    lora.check(config)
    fresh = store.Described("policy", _fresh(config, assumed.vocabulary)) if not config.init else None
    described = fresh or assumed.model(config.init)
    dtype = config.dtype or store.compute_dtype(described, mesh)
    graph, _, params, frozen = lora.load(config, mesh, "policy", described, dtype)
    example = language_model_example(BLANK, config.train_on_prompt)
    yield from loop.programs(config, mesh, params, make_loss(graph), example, assumed.steps, frozen)


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values that make no sense, before any file is read: a recipe asks all its stages first."""
    lora.check(config)
    loop.check(config, loop.mesh_of(config))
    loop.check_data(config)
    if not config.init:
        get_preset(config.preset)  # raises


def _fresh(config: ml_collections.ConfigDict, vocabulary: int) -> LlamaConfig:
    """The shape of a new model; presets of real models have a vocabulary of their own."""
    changes = {"remat": config.remat} if config.remat else {}
    return LlamaConfig(**({"vocab_size": vocabulary} | get_preset(config.preset) | changes))


def make_loss(graph: nnx.GraphDef) -> loop.LossFn:
    """Mean cross-entropy over the weighted tokens."""

    def loss_fn(params, batch):
        model = nnx.merge(graph, params)
        hidden, _ = model(batch["tokens"], batch["positions"], packed_causal(batch["segment_ids"]))
        loss, hits = losses.cross_entropy(hidden, model.output_matrix(), batch["targets"], batch["loss_weights"])
        return loss, {"token_accuracy": hits}

    return loss_fn
