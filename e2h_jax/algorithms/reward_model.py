"""Reward models (evaluators): a linear score per token, trained to judge steps (PRM), outcomes (ORM) or both (OPRM).

The three differ in their data alone (paper section 3.3): PRM records carry step labels, ORM records the outcome on every
step, an OPRM trains on the mixture. Labels sit on every token of a step or on its end; soft labels are trained as
probabilities, null labels not at all. An auxiliary language-model loss keeps the trunk able to predict what it must judge: on
the steps that are not labelled wrong, and on EOS where the solution ends.
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from e2h_jax.data.batches import BLANK, step_label_example
from e2h_jax.data.chat import policy_template
from e2h_jax.data.steps import encode_labelled
from e2h_jax.data.templates import as_record
from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.models import lora, store
from e2h_jax.models.attention import packed_causal
from e2h_jax.parallel.programs import Assumed, Program
from e2h_jax.sampling.prompts import show_first
from e2h_jax.training import loop, losses
from e2h_jax.training.examples import discard, read_examples

READ_AT = "separator_last"  # where `score` reads the steps of these models, unless it is told otherwise


def defaults() -> ml_collections.ConfigDict:
    """Fields of the `reward` stage (on top of the training loop's)."""
    config = loop.defaults()
    config.init = ""  # model/ folder whose trunk is judged with: a policy (fresh zero head) or a reward model
    config.data = ""  # labelled records
    config.levels = ()  # train on these levels only; () = all
    config.template = "e2h"  # text format; chat = the one that the model's model.json records
    config.label_tokens = "all"  # all = every token of a step | end = its last token and the blank line after it
    # A random gap of up to so many positions between prompt and solution. A judge trained on short problems otherwise calls
    # right steps wrong when they stand further from the start than any it has seen (cf. Ruoss et al. 2023).
    config.position_gap = 0
    config.lm_loss = 0.0  # coefficient of the auxiliary language-model loss (0 = off)
    config.lm_wrong = 0.0  # weight in that loss of steps labelled wrong (below one half), against 1 of all others
    config.limit = 0  # train on the first so many records of these levels; 0 = all
    config.dtype = ""  # compute dtype: float32 | bfloat16; "" = float32 on CPUs, the model's own on accelerators
    config.too_long = "drop"  # examples longer than `length`: drop (and count) | error
    config.lora = lora.defaults()
    return config.lock()


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
    """Trains and writes `workdir/model`; returns the summary. Raises UserError for bad data or a mesh that does not fit."""
    workdir = Path(workdir)
    check_values(config)
    mesh = loop.mesh_of(config, store.load_config(config.init)[1].width)
    tokenizer = load_tokenizer(config.init)
    template = policy_template(config.template, config.init, tokenizer, tell=jax.process_index() == 0)
    dtype = loop.begun_dtype(workdir, config, Path(config.init), mesh)
    graph, model_config, params, frozen = lora.load(config, mesh, "reward", dtype=dtype)
    if config.lm_loss and not (model_config.lm_head or model_config.tie_embeddings):
        raise UserError(f"config.lm_loss: {config.init} has no language-model head; set it to 0")

    # The data: per token of a labelled solution its step's label and a weight.
    def make(records, numbers):
        encoded = encode_labelled(tokenizer, records, template, add_eos=True)
        show_first(tokenizer, [one.tokens[: one.prompt_length] for one, _ in encoded[:1]], template)
        drawn = numbers.max(initial=-1) + 1  # of every record up to the last of these, so that all processes draw the same
        gaps = np.random.default_rng(config.seed).integers(0, config.position_gap, drawn, endpoint=True)[numbers]
        return [
            step_label_example(
                solution,
                first,
                record["labels"],
                config.label_tokens,
                gap,
                # A step that is not the final answer is followed by another, unless the record says that it is the last.
                ends=record.get("eos", solution.has_answer),
                lm_wrong=config.lm_wrong,
            )
            for record, (solution, first), gap in zip(records, encoded, gaps, strict=True)
        ]

    examples = read_examples(config, workdir, "labelled", make)
    if not examples.about["labels"].any():
        raise UserError(f"config.data={config.data} holds no label to train on: every label is null")
    examples, dropped = loop.fit_length(examples, config.length, config.too_long, model_config.max_length)

    params, summary = loop.fit(workdir, config, mesh, params, make_loss(graph, config.lm_loss), examples, frozen)
    reads = {"template": as_record(template), "read_at": READ_AT}
    lora.save(workdir, config, mesh, "reward", model_config, params, tokenizer, reads)
    discard(workdir)
    return summary | {
        "parameters": store.count_parameters((params, frozen)),
        "trained_parameters": store.count_parameters(params),
        "examples": len(examples),
        "dropped": dropped,
        "tokens": sum(len(example["tokens"]) for example in examples),
    }


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values that make no sense, before any file is read: a recipe asks all its stages first."""
    if not config.init:
        raise UserError("config.init is empty; name the model/ folder of a finished stage")
    lora.check(config)
    loop.check(config, loop.mesh_of(config))
    loop.check_data(config)
    if config.label_tokens not in ("all", "end"):
        raise UserError(f"config.label_tokens={config.label_tokens!r} must be all or end")
    if config.lm_loss < 0:
        raise UserError(f"config.lm_loss={config.lm_loss} must be at least 0 (0 = off)")
    if not 0 <= config.lm_wrong <= 1:
        raise UserError(f"config.lm_wrong={config.lm_wrong} must be a weight from 0 to 1")
    if config.lm_wrong and not config.lm_loss:
        raise UserError(f"config.lm_wrong={config.lm_wrong} does nothing with config.lm_loss=0; set it to 0, or config.lm_loss")
    if config.position_gap < 0:
        raise UserError("config.position_gap must be at least 0")


def programs(config: ml_collections.ConfigDict, mesh: Mesh, assumed: Assumed) -> Iterator[Program]:
    """The programs that `run` compiles, see parallel/programs.py."""
    lora.check(config)
    described = assumed.model(config.init)
    dtype = config.dtype or store.compute_dtype(described, mesh)
    graph, _, params, frozen = lora.load(config, mesh, "reward", described, dtype)
    example = step_label_example(BLANK, 0, [], config.label_tokens)
    yield from loop.programs(config, mesh, params, make_loss(graph, config.lm_loss), example, assumed.steps, frozen)


def make_loss(graph: nnx.GraphDef, lm_coef: float) -> loop.LossFn:
    """Mean binary cross-entropy over labelled tokens, plus `lm_coef` x the weighted mean cross-entropy of the next token."""

    def loss_fn(params, batch):
        model = nnx.merge(graph, params)
        logits, hidden = model(batch["tokens"], batch["positions"], packed_causal(batch["segment_ids"]))
        loss, hits = losses.step_classification(logits, batch["labels"], batch["label_weights"])
        metrics = {"label_loss": loss, "label_accuracy": hits}
        if lm_coef:
            lm_loss, _ = losses.cross_entropy(hidden, model.trunk.output_matrix(), batch["targets"], batch["loss_weights"])
            loss += lm_coef * lm_loss
            metrics["lm_loss"] = lm_loss
        return loss, metrics

    return loss_fn
