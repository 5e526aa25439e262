"""Iterative DPO: sample solutions, pair good with bad ones by score, prefer the good ones; a few rounds.

A solution's score is that of the reward model's steps, in [0, 1], plus 1 if its final answer is right; where the answer is
hidden, the reward model's alone. Two solutions of a problem whose scores differ by more than a margin make a pair, chosen and
rejected. With log-ratios r = log pi(solution) - log pi_ref(solution), summed over its tokens, and h = r_chosen - r_rejected:

    sigmoid  -log sigmoid(beta h); with label_smoothing e, -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)
    ipo      (h - 1 / (2 beta))^2
    rpo      mean over both sides of (r - (win - 1/2) / beta)^2; win is the side's score as a share of the highest possible

(Rafailov et al. 2023, arXiv 2305.18290; Mitchell 2023; Azar et al. 2023, arXiv 2310.12036.) `nll` adds the chosen solution's
mean negative log-likelihood (Pang et al. 2024, arXiv 2404.19733). The reference's log-probabilities are computed once, before
training, and lie with the examples: training holds no second model.

Writes round-1/samples, round-1/scored, round-1/pairs.jsonl, round-1/reference, round-1/train …, and model/, the best round's.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from e2h_jax.algorithms import rounds
from e2h_jax.algorithms.rounds import Round, Solution, complete
from e2h_jax.data.batches import BLANK, Example, language_model_example, packed_batches
from e2h_jax.data.records import json_lines
from e2h_jax.data.steps import encode_continuations
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import Template, as_record
from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.errors import UserError, naming
from e2h_jax.models import lora, store
from e2h_jax.models.attention import packed_causal
from e2h_jax.parallel.programs import Assumed, Program, Unit, prefixed
from e2h_jax.parallel.rules import axis_size, batch_sharding, constrain
from e2h_jax.training import loop, losses

LOSSES = ("sigmoid", "ipo", "rpo")


def defaults() -> ml_collections.ConfigDict:
    """Fields of the `dpo` stage."""
    config = rounds.defaults()
    config.margin = 1.0  # scores, from 0 to 2, of a pair on a question with a known answer differ by more
    config.margin_hidden = 0.5  # scores, from 0 to 1, of a pair on a question with a hidden answer differ by more
    config.pairs_per_problem = 3  # at most, those of the largest difference; a solution is in one pair only; 0 = all
    config.loss = "sigmoid"  # sigmoid | ipo | rpo, see above
    config.beta = 0.1  # how strongly the policy is held to the reference
    config.label_smoothing = 0.0  # of sigmoid: share of pairs taken to be the wrong way round (conservative DPO)
    config.average_logprobs = False  # True: log-probabilities are means over a solution's tokens, not sums
    config.nll = 0.0  # coefficient of the chosen solution's mean negative log-likelihood (0 = off)
    config.reference = "round"  # round = the policy that begins the round | init = that of the first
    config.reference_dtype = ""  # compute dtype of the reference's pass; "" = the model's own
    config.reference_quantize = ""  # int8 = the reference's weights in int8 (docs/memory.md); "" = off
    config.train = rounds.without(loop.defaults(), "seed", "mesh")
    config.train.too_long = "drop"  # pairs longer than `length`, both sides together: drop (and count) | error
    config.train.lora = rounds.without(lora.defaults(), "merge")
    config.train.optimizer.learning_rate = 2e-6  # peak
    config.train.batch_size = 64  # packed rows per optimiser step, over all devices; a row holds one pair or more
    config.sample.samples = 8  # per problem
    config.sample.temperature = 1.0
    config.rounds = 5
    return config.lock()


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
    """Writes `workdir/model`; returns the summary. Raises UserError for bad settings or data, or if there is no pair."""
    check_values(config)
    template = rounds.check_files(config)

    def play(this: Round) -> dict:
        drawn = this.draw()
        path = this.folder / "pairs.jsonl"

        def pair(_: Path) -> dict:
            solutions = this.solutions()
            pairs = select_pairs(solutions, config.margin, config.margin_hidden, config.pairs_per_problem)
            if not pairs:
                raise UserError(
                    f"{len(solutions)} solutions make no pair; "
                    f"lower config.margin or config.margin_hidden, or draw more (config.sample.samples), {this.elsewhere}"
                )
            if jax.process_index() == 0:
                write_records(path, pairs)
            return _counts(pairs)

        paired = this.part("pairs", pair)
        train_config = complete(config.train, seed=this.seed, mesh=config.mesh, init=this.model)
        train_config.lora.merge = True  # the next round samples from it
        with naming("config.train.", rounds.FILLED):
            examples, dropped = _examples(train_config, path, template)
        if not examples:
            long = f"all {dropped} pairs are longer than config.train.length={config.train.length}"
            raise UserError(f"{this.folder.name}: {long}; raise it, {this.elsewhere}")
        reference = config.init if config.reference == "init" else this.model
        this.part("reference", lambda folder: _reference(config, train_config, reference, examples, folder))
        teach = lambda folder: train(config, train_config, template, examples, this.folder / "reference", folder)  # noqa: E731
        trained = this.part("train", teach, "train")
        metrics = {name: value for name, value in (paired | trained).items() if name not in ("seconds", "tokens_per_second")}
        return drawn | metrics | {"dropped": dropped}

    return rounds.run(config, workdir, template, play)


def select_pairs(solutions: list[Solution], margin: float, margin_hidden: float, per_problem: int) -> list[dict]:
    """Pairs of different solutions of one problem, of the largest difference first, each solution in one pair at most.

    The better one must have ended by itself. Returns {"problem", "chosen": side, "rejected": side}, a side being {"sample",
    "text", "stopped", "score", "win"}.
    """
    pairs = []
    for found in rounds.distinct(solutions).values():
        hidden = found[0].right is None
        highest = (found[0].score is not None) + (not hidden)  # 1 for the reward model, 1 for the answer
        if not highest:
            continue
        ranked = sorted(found, key=lambda solution: -_score(solution))  # of equals the first drawn
        better = [solution for solution in ranked if solution.stopped]
        made: list[dict] = []
        # Best with worst, second best with second worst …: what is left of a problem only gets closer.
        while better and len(made) < (per_problem or len(found)):
            chosen, rejected = better[0], ranked[-1]
            if not _score(chosen) - _score(rejected) > (margin_hidden if hidden else margin):
                break
            made.append({"problem": chosen.problem} | {"chosen": _side(chosen, highest), "rejected": _side(rejected, highest)})
            better = [solution for solution in better if solution not in (chosen, rejected)]
            ranked = [solution for solution in ranked if solution not in (chosen, rejected)]
        pairs += made
    return pairs


def _score(solution: Solution) -> float:
    return (solution.score or 0.0) + (solution.right is True)


def _side(solution: Solution, highest: int) -> dict:
    score = _score(solution)
    return {"sample": solution.sample, "text": solution.text, "stopped": solution.stopped} | {
        "score": score,
        "win": score / highest,
    }


def pair_example(chosen: Example, rejected: Example, wins: tuple[float, float]) -> Example:
    """Both solutions, prompt included, one behind the other, as one training example.

    Returns arrays [T]: tokens, targets, positions int32; `half` int32, 0 for the chosen one's tokens and 1 for the rejected
    one's; `response` float32, 1 where the target belongs to the solution; `win` float32, at the first token of each half; and
    `pair_weights` float32, 1 at the first token, so that they sum to the number of pairs.
    """
    lengths = len(chosen["tokens"]), len(rejected["tokens"])
    example = {name: np.concatenate([chosen[name], rejected[name]]) for name in ("tokens", "targets", "positions")}
    win, pair_weights = np.zeros((2, sum(lengths)), np.float32)
    win[[0, lengths[0]]], pair_weights[0] = wins, 1.0
    return example | {
        "half": np.repeat(np.arange(2, dtype=np.int32), lengths),
        "response": np.concatenate([chosen["loss_weights"], rejected["loss_weights"]]),
        "win": win,
        "pair_weights": pair_weights,
    }


def _examples(train_config: ml_collections.ConfigDict, pairs_file: Path, template: Template) -> tuple[list[Example], int]:
    """The pairs of a file as training examples, and how many were too long."""
    pairs = [record for _, record in json_lines(pairs_file)]
    tokenizer = load_tokenizer(train_config.init)
    sides = [(pair["problem"], pair[name]) for pair in pairs for name in ("chosen", "rejected")]
    encoded = encode_continuations(tokenizer, [problem | {"solution": side["text"]} for problem, side in sides], template)
    halves = [
        language_model_example(solution, train_on_prompt=False, ends=side["stopped"])
        for solution, (_, side) in zip(encoded, sides, strict=True)
    ]
    examples = [
        pair_example(chosen, rejected, (pair["chosen"]["win"], pair["rejected"]["win"]))
        for chosen, rejected, pair in zip(halves[::2], halves[1::2], pairs, strict=True)
    ]
    max_length = store.load_config(train_config.init)[1].max_length
    return loop.fit_length(examples, train_config.length, train_config.too_long, max_length)


def token_logprobs(model: nnx.Module, batch: loop.Batch) -> jax.Array:
    """Log-probability float32 [B, L] of every target, each half of a pair seeing itself alone."""
    hidden, _ = model(batch["tokens"], batch["positions"], packed_causal(half_ids(batch)))
    return losses.token_logprobs(hidden, model.output_matrix(), batch["targets"])[0]


def half_ids(batch: loop.Batch) -> jax.Array:
    """int32 [B, L]: 1, 2 for the halves of a row's first pair, 3, 4 for the second's …; 0 is padding."""
    segments = batch["segment_ids"]
    return jnp.where(segments > 0, 2 * segments - 1 + batch["half"], 0)


def reference_logprobs(
    graph: nnx.GraphDef, params: nnx.State, mesh: Mesh, examples: Sequence[Example], length: int, rows: int
) -> list[np.ndarray]:
    """Log-probabilities float32 [T] of each example's targets under a model, in batches of packed rows."""
    marked = [{**e, "example": np.full(len(e["tokens"]), index, np.int32)} for index, e in enumerate(examples)]
    batches, _ = packed_batches(
        marked,
        length=length,
        batch_size=rows,
        seed=0,
        epochs=1,
        own=loop.own_rows(mesh, rows),
    )

    forward = make_forward(graph)
    found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(examples)
    with jax.set_mesh(mesh):
        for arrays in batches:
            batch = {name: jax.make_array_from_process_local_data(batch_sharding(mesh), a) for name, a in arrays.items()}
            values, numbers = (np.asarray(array).ravel() for array in forward(params, batch))
            for index in np.unique(numbers[numbers >= 0]):
                found[index] = values[numbers == index]
    return found


def make_forward(graph: nnx.GraphDef) -> Callable:
    """Jitted `forward(params, batch)`: the targets' log-probabilities, and the numbers of their examples, -1 at padding."""

    @jax.jit
    def forward(params, batch):
        values = token_logprobs(nnx.merge(graph, params), batch)
        numbers = jnp.where(batch["segment_ids"] > 0, batch["example"], -1)
        return constrain(values, None, None), constrain(numbers, None, None)  # every host reads them all

    return forward


def _reference(
    config: ml_collections.ConfigDict,
    train_config: ml_collections.ConfigDict,
    model: str,
    examples: list[Example],
    folder: Path,
) -> dict:
    """Writes `folder/logprobs.npy`: those of all examples, one behind the other."""
    mesh = loop.mesh_of(train_config, store.load_config(train_config.init)[1].width)
    graph, _, params = store.load_frozen(Path(model), mesh, "policy", config.reference_dtype, config.reference_quantize)
    rows = _reference_rows(train_config, mesh)
    logprobs = np.concatenate(reference_logprobs(graph, params, mesh, examples, train_config.length, rows))
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "logprobs.npy.tmp", "wb") as file:
            np.save(file, logprobs)
            file.flush()
            os.fsync(file.fileno())  # before reference.json says that it is there
        (folder / "logprobs.npy.tmp").rename(folder / "logprobs.npy")
    return {"tokens": len(logprobs)}


def _reference_rows(train_config: ml_collections.ConfigDict, mesh: Mesh) -> int:
    shards = axis_size(mesh, "batch")
    return max(1, train_config.batch_size // max(1, train_config.microbatches) // shards) * shards


def train(
    config: ml_collections.ConfigDict,
    train_config: ml_collections.ConfigDict,
    template: Template,
    examples: list[Example],
    reference: Path,
    workdir: Path,
) -> dict:
    """Trains the round's policy on pairs in `template`; `reference` is the folder of the reference's log-probabilities."""
    lora.check(train_config)
    mesh = loop.mesh_of(train_config, store.load_config(train_config.init)[1].width)
    graph, model_config, params, frozen = lora.load(train_config, mesh, "policy")
    logprobs = np.split(np.load(reference / "logprobs.npy"), np.cumsum([len(example["tokens"]) for example in examples])[:-1])
    examples = [{**example, "reference": part} for example, part in zip(examples, logprobs, strict=True)]
    most = train_config.length // min(len(example["tokens"]) for example in examples)  # pairs that fit into a row

    params, summary = loop.fit(workdir, train_config, mesh, params, make_loss(config, graph, most), examples, frozen)
    reads = {"template": as_record(template)}
    lora.save(workdir, train_config, mesh, "policy", model_config, params, load_tokenizer(train_config.init), reads)
    return summary


def make_loss(config: ml_collections.ConfigDict, graph: nnx.GraphDef, most: int) -> loop.LossFn:
    """The preference loss of packed rows that hold at most `most` pairs each."""
    return lambda params, batch: pair_loss(config, token_logprobs(nnx.merge(graph, params), batch), batch, most)


def programs(config: ml_collections.ConfigDict, mesh: Mesh, assumed: Assumed) -> Iterator[Program]:
    """The programs that `run` compiles, see parallel/programs.py. A part holds nothing any more when the next begins."""
    yield from rounds.programs(config, mesh, assumed)
    train_config = complete(config.train, seed=config.seed, mesh=config.mesh, init=config.init)
    with naming("config.train.", outside=("mesh", "init")):
        lora.check(train_config)
        blank = language_model_example(BLANK, train_on_prompt=False)
        example = pair_example(blank, blank, (1.0, 0.0))
        described = assumed.model(config.init)
        graph, _, params = store.load_frozen(described, mesh, "policy", config.reference_dtype, config.reference_quantize)
        length, rows = train_config.length, _reference_rows(train_config, mesh)
        marked = example | {name: np.zeros(0, np.int32) for name in ("segment_ids", "example")}
        batch, unit = loop.batch_shapes(marked, rows, length, mesh), Unit("1M tokens of pairs", 1e6)
        held, runs = {"parameters": params}, unit.tokens / (rows * length)
        yield Program("reference: forward", make_forward(graph), (params, batch), mesh, held, unit, runs)
        graph, _, params, frozen = lora.load(train_config, mesh, "policy", described)
        # A pair is two prompts and two solutions; the least of them is all that bounds how many share a row.
        loss = make_loss(config, graph, max(1, length // (2 * assumed.prompt(length // 2, f"half of {length} tokens"))))
        example |= {"reference": np.zeros(0, np.float32)}
        yield from prefixed("train", loop.programs(train_config, mesh, params, loss, example, assumed.steps, frozen))


def pair_loss(
    config: ml_collections.ConfigDict, logprobs_BxL: jax.Array, batch: loop.Batch, most: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum over the pairs of packed rows of weight x loss, and the metrics; a row holds at most `most` pairs."""
    response = batch["response"]
    columns = [response * logprobs_BxL, response * batch["reference"], response, batch["win"], batch["pair_weights"]]
    sums = jax.vmap(lambda values, ids: jax.ops.segment_sum(values, ids, num_segments=2 * most + 1))(
        jnp.stack(columns, axis=-1), half_ids(batch)
    )
    sums = sums[:, 1:].reshape(-1, 2, len(columns))  # [pairs, side, column], without the padding
    policy, reference, tokens, win, weights = (sums[..., index] for index in range(len(columns)))
    weight, counts = weights[:, 0], jnp.maximum(tokens, 1.0)
    nll = -policy[:, 0] / counts[:, 0]
    if config.average_logprobs:
        policy, reference = policy / counts, reference / counts
    loss = preference_loss(config, policy - reference, win)
    rewards = config.beta * (policy - reference)
    metrics = {
        "preference_loss": loss,
        "accuracy": rewards[:, 0] > rewards[:, 1],
        "margin": rewards[:, 0] - rewards[:, 1],
        "chosen_reward": rewards[:, 0],
        "rejected_reward": rewards[:, 1],
        "policy_accuracy": policy[:, 0] > policy[:, 1],
        "reference_accuracy": reference[:, 0] > reference[:, 1],
        "chosen_nll": nll,  # mean per token
    }
    return jnp.sum(weight * (loss + config.nll * nll)), {name: jnp.sum(weight * value) for name, value in metrics.items()}


def preference_loss(config: ml_collections.ConfigDict, ratios_Px2: jax.Array, wins_Px2: jax.Array) -> jax.Array:
    """Loss [P] of pairs from their log-ratios to the reference, chosen first (original-system.md section 5)."""
    h, beta = ratios_Px2[:, 0] - ratios_Px2[:, 1], config.beta
    match config.loss:
        case "ipo":
            return jnp.square(h - 1 / (2 * beta))
        case "rpo":
            return jnp.square(ratios_Px2 - (wins_Px2 - 0.5) / beta).mean(-1)
        case _:
            smoothing = config.label_smoothing
            return -(1 - smoothing) * jax.nn.log_sigmoid(beta * h) - smoothing * jax.nn.log_sigmoid(-beta * h)


def _counts(pairs: list[dict]) -> dict[str, int]:
    levels = Counter(pair["problem"]["level"] for pair in pairs if pair["problem"]["level"] is not None)
    return {
        "pairs": len(pairs),
        "pair_problems": len({pair["problem"]["id"] for pair in pairs}),
        **{f"pairs_level_{level}": count for level, count in sorted(levels.items())},
    }


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values that make no sense, before any file is read: a recipe asks all its stages first."""
    rounds.check_values(config)
    if config.loss not in LOSSES:
        raise UserError(f"config.loss={config.loss!r} must be one of {', '.join(LOSSES)}")
    if config.beta <= 0:
        raise UserError(f"config.beta={config.beta} must be above 0")
    if not 0 <= config.label_smoothing < 0.5:
        raise UserError(f"config.label_smoothing={config.label_smoothing} must be at least 0 and below one half")
    if config.label_smoothing and config.loss != "sigmoid":
        raise UserError(f"config.label_smoothing is of the sigmoid loss; with config.loss={config.loss} set it to 0")
    if min(config.margin, config.margin_hidden, config.nll, config.pairs_per_problem) < 0:
        raise UserError("config.margin, config.margin_hidden, config.nll and config.pairs_per_problem must be at least 0")
    if config.reference not in ("round", "init"):
        raise UserError(f"config.reference={config.reference!r} must be round or init")
    if config.aggregation == "mean_odds":
        raise UserError("config.aggregation=mean_odds is no score in [0, 1], as margins and wins are; choose another")
    highest = 1 + bool(config.reward_model)
    if config.margin >= highest:
        scores = "scores are at most 2" if config.reward_model else "without config.reward_model scores are 0 or 1"
        raise UserError(f"config.margin={config.margin} leaves no pair: {scores}; set it below {highest}")
    with naming("config.reference_"):
        store.check(config.reference_dtype, config.reference_quantize)
