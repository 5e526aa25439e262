"""Scoring: every step of every sampled solution judged by a reward model, to scored records.

One forward pass scores all steps of a solution; solutions are batched by length, or packed into rows. A problem's `prefix`, the
beginning of its solutions, is read with them; its own steps get no score. Interrupted runs continue with what is missing. On
several hosts each writes a share of the solutions.
"""

import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import jax
import ml_collections
from jax.sharding import Mesh
from tqdm import tqdm

from e2h_jax.data.records import read_many
from e2h_jax.data.rewrite import as_read, rewrite
from e2h_jax.data.steps import READ_AT, EncodedSolution, check_tag, encode_solutions, steps_begun
from e2h_jax.data.storage import ShardWriter, check_same, digest
from e2h_jax.data.templates import check_answer, check_written, get_template, recorded_template, with_answer
from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.errors import UserError, nearest
from e2h_jax.metrics import MetricsWriter
from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.chosen import begun_with
from e2h_jax.parallel.compilation import clock
from e2h_jax.parallel.devices import free_memory
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.programs import Assumed, Program, Unit
from e2h_jax.parallel.progress import Estimate
from e2h_jax.parallel.rules import axis_size
from e2h_jax.parallel.shapes import device_bytes
from e2h_jax.rewards.scoring import Scorer, batch_rows, plan

SHARE = 0.6  # of the free memory that a forward pass may take, where memory decides how many tokens it has


def defaults() -> ml_collections.ConfigDict:
    """Fields of the `score` stage."""
    config = ml_collections.ConfigDict()
    config.model = ""  # model/ folder of a reward model
    config.samples = ""  # sample records (folder of shards or a file)
    config.problems = ""  # the problems they answer
    config.template = ""  # text that the model reads; "" = the model's own, as chat
    config.read_at = ""  # token at which a step's score is read, see data/steps.py; "" = the model's own
    # Template in which the samples are written; if the model reads another, they are rewritten for it. "" = the one that
    # `sample` recorded beside them, else the model's.
    config.written_in = ""
    # How the samples' answers are found, whose step is the last: template = as that template says | a rule (docs/grading.md) or
    # a regular expression, as in `labels` and `evaluate`.
    config.answer = "template"
    config.tokens_per_batch = 16_384  # padded tokens of one forward pass, over all devices; 0 = 16,384 a shard if memory allows
    config.length_bucket = 64  # solutions are padded to a multiple of this; a program is compiled for each length
    config.too_long = "error"  # a solution longer than the model or `row_length`: error | zero (each of its steps scores 0)
    config.row_length = 0  # instead, pack solutions into rows of so many tokens: one program, hardly any padding; 0 = off
    config.mesh = (1, -1, 1)  # devices along (data, fsdp, tensor)
    config.dtype = ""  # compute dtype: float32 | bfloat16; "" = float32 on CPUs, the model's own on accelerators
    config.quantize = ""  # int8 = weights in int8, half the memory of bfloat16 (docs/memory.md); "" = off
    return config.lock()


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
    """Writes `workdir/scored-*.jsonl`: each sample with its `step_scores`. Raises UserError for bad settings or data."""
    workdir = Path(workdir)
    check_values(config)
    if store.load_config(config.model)[0] != "reward":  # `load` would give a policy a fresh head, for training
        raise UserError(
            f"{config.model} holds a policy model where a reward model is needed "
            "(an evaluator of the Hub becomes one by `e2h convert --config.reward=…`)"
        )
    mesh = make_mesh(config.mesh, rows=(rows_of(config),), width=store.load_config(config.model)[1].width)
    resumed = any(path.stat().st_size for path in workdir.glob("scored-*"))
    dtype = store.begun_dtype(workdir, config.dtype, Path(config.model), mesh, resumed)
    graph, model_config, params = store.load_frozen(Path(config.model), mesh, "reward", dtype, config.quantize)
    tokenizer, own = load_tokenizer(config.model), recorded_template(config.model) or get_template("e2h")
    template = get_template(config.template, config.model, tokenizer) if config.template else own
    own_read_at = store.load_reads(config.model).get("read_at", "separator_last")
    read_at = config.read_at or own_read_at
    for name, differs, made_for in (("template", template != own, own.name), ("read_at", read_at != own_read_at, own_read_at)):
        if differs and jax.process_index() == 0:
            print(f"e2h: config.{name}={config[name]}, but the model is made for {made_for}", file=sys.stderr)
    check_tag(tokenizer, template)
    recorded = recorded_template(config.samples) or template
    written = get_template(config.written_in, config.samples) if config.written_in else recorded
    check_written(config.samples, written, "config.written_in")
    written = with_answer(written, config.answer)
    template = as_read(template, written)
    problems = {problem["id"]: problem for problem in read_many(config.problems, "problem")}

    key = lambda record: (record["problem_id"], record["sample"])  # noqa: E731
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    with ShardWriter(workdir, "scored", key=key, **process) as writer:
        samples = read_many(config.samples, "sample")
        inputs = {"model": store.identity(config.model), "samples": digest(*sorted(map(json.dumps, samples))).hex()}
        doing = "scoring other samples or with another model"
        check_same(workdir / "inputs.json", inputs, resumed=bool(writer.done), write=jax.process_index() == 0, doing=doing)
        for sample in samples:
            if sample["problem_id"] not in problems:
                raise UserError(
                    f"{config.samples}: problem_id {sample['problem_id']!r} is not in {config.problems}; "
                    "give the problems that were sampled"
                )
        if written.tag and samples and not any(written.tag in sample["text"] for sample in samples):
            raise UserError(
                f"{config.samples}: no sample has a step tag {written.tag!r}, as the template {written.name} has; "
                "name the template that they are written in (config.written_in)"
            )
        asked = [problems[sample["problem_id"]] for sample in samples]
        wholes = [written.whole(problem, sample["text"]) for problem, sample in zip(asked, samples, strict=True)]
        lengths = [len(whole) - len(sample["text"]) for whole, sample in zip(wholes, samples, strict=True)]
        begun = [steps_begun(whole, length, written) for whole, length in zip(wholes, lengths, strict=True)]
        texts = [rewrite(whole, written, template) for whole in wholes]
        encoded = encode_solutions(tokenizer, [problem["question"] for problem in asked], texts, template, add_eos=False)
        # The plan is that of all samples, whatever was scored before: a resumed run computes the very same batches.
        missing, total = {index for index, sample in enumerate(samples) if key(sample) not in writer.done}, len(samples)
        fitting = _fitting(config, samples, encoded, model_config.max_length)
        judged = [encoded[index] for index in fitting]
        tokens_per_batch = config.tokens_per_batch
        if not tokens_per_batch:
            longest = _row_length(config, max((len(solution.tokens) for solution in judged), default=1))
            free = free_memory(mesh.local_devices[0], sharing=len(mesh.local_devices))
            tokens_per_batch = begun_with(
                workdir, "tokens_per_batch", lambda: tokens_that_fit(model_config, mesh, longest, free)
            )
        batches = plan(
            judged,
            granularity=config.length_bucket,
            tokens_per_batch=tokens_per_batch,
            shards=axis_size(mesh, "batch"),
            row_length=config.row_length,
        )
        batches = [batch for batch in batches if any(fitting[index] in missing for index in batch.indices)]
        scorer, began, scored, first = Scorer(graph, params, mesh), clock(), 0, jax.process_index() == 0
        unread = {
            index: [0.0] * (len(encoded[index].steps) + (not encoded[index].has_answer))
            for index in sorted(set(range(total)) - set(fitting))
        }
        computed = missing.difference(unread)
        with (
            MetricsWriter(workdir, resume_step=total - len(missing), enabled=first) as metrics,
            tqdm(total=total, initial=total - len(missing), unit="solution", desc=workdir.name, disable=not first) as bar,
        ):
            estimate, found = Estimate(bar), scorer.score(judged, batches, read_at)
            found = ({fitting[index]: values for index, values in one.items()} for one in found)
            for number, scores in enumerate(chain([unread], found)):
                scores = {index: values for index, values in scores.items() if index in missing}
                mine = {i: values for i, values in scores.items() if i % process["process_count"] == process["process_index"]}
                # Of a solution that goes on from within its answer, the answer's score is all there is.
                own = {i: values[begun[i] :] or values[-1:] for i, values in mine.items()}
                writer.write(samples[index] | {"step_scores": values} for index, values in own.items())
                scored += len(scores)
                if number == 2:  # batches: one may have begun before it was waited for
                    passed, two = clock() - began, batches[:2]
                    left = passed * (sum(b.tokens.size for b in batches) / sum(b.tokens.size for b in two) - 1)
                    estimate.tell(left, sum((b.segment_ids > 0).sum() for b in two) / passed)
                bar.update(len(scores))
                if done := scored - (len(missing) - len(computed)):  # of what is computed
                    rate = done / (clock() - began)
                    metrics.write(total - len(missing) + scored, {"solutions_per_second": rate})
    seconds = clock() - began
    return {
        "solutions": total,
        "scored_now": len(missing),
        "too_long": len(unread),
        "solutions_per_second": len(computed) / seconds,
        "tokens_per_second": sum(len(encoded[index].tokens) for index in computed) / seconds,
        "padding": 1 - sum((b.segment_ids > 0).sum() for b in batches) / max(1, sum(b.tokens.size for b in batches)),
    }


def _fitting(
    config: ml_collections.ConfigDict, samples: list[dict], encoded: list[EncodedSolution], positions: int
) -> list[int]:
    """The solutions that a row holds, by index; UserError for one that it does not, unless those are to score 0."""
    room = min(config.row_length or positions, positions)
    fitting = [index for index, solution in enumerate(encoded) if len(solution.tokens) <= room]
    if len(fitting) < len(encoded) and config.too_long == "error":
        longest = max(range(len(encoded)), key=lambda index: len(encoded[index].tokens))
        which = f'problem "{samples[longest]["problem_id"]}", sample {samples[longest]["sample"]}, the longest'
        limit = f"config.row_length={config.row_length}" if room == config.row_length else f"the model's {positions} positions"
        remedy = "raise it, or set config.too_long=zero" if room < positions else "set config.too_long=zero"
        raise UserError(
            f"{config.samples}: a solution has {len(encoded[longest].tokens)} tokens, more than {limit} ({which} of "
            f"{len(encoded) - len(fitting):,} too long ones among {len(encoded):,}); {remedy} to let their steps score 0"
        )
    return fitting


def _row_length(config: ml_collections.ConfigDict, longest: int) -> int:
    """Tokens of the longest row, where the longest solution has so many."""
    return config.row_length or -(-longest // config.length_bucket) * config.length_bucket


def tokens_that_fit(model_config: LlamaConfig, mesh: Mesh, length: int, free: float) -> int:
    """Padded tokens of a batch, over all devices, for whose forward pass there is memory; a shard has 16,384 at most.

    `length` of the longest row, of which a shard has one at least; `free` bytes of a device beside the weights. Counted are ten
    arrays of the width, three of the feed-forward width, and three of the scores of all pairs, which CPUs make; all float32.
    """
    c, shards = model_config, axis_size(mesh, "batch")
    token = 4 * (10 * c.width + (3 * c.mlp_width + 3 * c.heads * length) / axis_size(mesh, "mlp"))
    return int(max(length, min(16_384, SHARE * free / token))) * shards


def programs(config: ml_collections.ConfigDict, mesh: Mesh, assumed: Assumed) -> Iterator[Program]:
    """The programs that `run` compiles, see parallel/programs.py: the one for the longest solution."""
    check(config)
    described = assumed.model(config.model)
    dtype = config.dtype or store.compute_dtype(described, mesh)
    graph, model_config, params = store.load_frozen(described, mesh, "reward", dtype, config.quantize)
    prompt = assumed.prompt(model_config.max_length - 1, f"a solution in {model_config.max_length} positions")
    longest = prompt + assumed.solution(min(1024, model_config.max_length - prompt))
    length = _row_length(config, longest)
    tokens_per_batch = config.tokens_per_batch
    if not tokens_per_batch:
        free = free_memory(mesh.devices.flat[0], described=True) - device_bytes(params)
        tokens_per_batch = tokens_that_fit(model_config, mesh, length, free)
    rows, unit = batch_rows(tokens_per_batch, length, axis_size(mesh, "batch")), Unit("1M scored tokens", 1e6)
    runs = unit.tokens / (rows * length)
    yield from Scorer(graph, params, mesh).programs(rows, length, {"parameters": params}, unit, runs)


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values that make no sense, before any file is read: a recipe asks all its stages first."""
    if not config.model:
        raise UserError("config.model is empty; name the model/ folder of a finished stage")
    check_answer(config.answer)
    check(config)
    check_batch(config, make_mesh(config.mesh, rows=(rows_of(config),)))


def rows_of(config: ml_collections.ConfigDict) -> int:
    """The largest power of 2 of rows that a batch has room for, at least 1; 0 where the device's memory will decide."""
    if not config.tokens_per_batch:
        return 0
    rows = config.tokens_per_batch // max(1, config.row_length or config.length_bucket)
    return 1 << max(0, rows.bit_length() - 1)


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Raises UserError for a batch in which a shard of the mesh has less than one row."""
    name, shards = "row_length" if config.row_length else "length_bucket", axis_size(mesh, "batch")
    if 0 < config.tokens_per_batch < shards * config[name]:
        raise UserError(
            f"config.tokens_per_batch={config.tokens_per_batch} is less than a row of config.{name}={config[name]} tokens on "
            f"each of the {shards} shards along (data, fsdp) of config.mesh={tuple(mesh.shape.values())}; raise it"
        )


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for settings that no reward model can be run with."""
    if config.read_at and config.read_at not in READ_AT:
        raise UserError(f"config.read_at={config.read_at!r} is unknown{nearest(config.read_at, READ_AT)}")
    if config.length_bucket < 1 or min(config.tokens_per_batch, config.row_length) < 0:
        raise UserError("config.length_bucket must be at least 1, config.tokens_per_batch and config.row_length at least 0")
    if config.too_long not in ("error", "zero"):
        raise UserError(f"config.too_long={config.too_long!r} must be error or zero")
    store.check(config.dtype, config.quantize)
