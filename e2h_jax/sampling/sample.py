"""Sampling: N solutions of every problem from a policy, to sample records.

Each prompt is prefilled once for its N samples; rows stop at EOS or at the template's stop texts, and take the next sample at
once. A problem with a `prefix`, the beginning of a solution, is continued from there. A sample depends on (seed, problem id,
sample index) alone: not on order, subset or resume, bit for bit; with another number of rows or mesh, the last bits of its
`logprob` may differ (and two tokens that tie within rounding may swap). The number of rows follows from the config and, where
few problems would leave rows idle, from how many they are, unless `rows_per_prompt` is set (docs/sampling.md). Interrupted runs
continue with the samples that are missing. On several hosts each writes the samples of its own rows.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from e2h_jax.data.chat import policy_template
from e2h_jax.data.records import read_many, select_levels
from e2h_jax.data.storage import ShardWriter, check_same, digest
from e2h_jax.data.templates import RECORD, Template, recorded_template, write_template
from e2h_jax.data.tokenizer import decode_solution, end_ids, load_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.metrics import MetricsWriter
from e2h_jax.models import store
from e2h_jax.models.cached_attention import chunk_sizes
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel import compilation
from e2h_jax.parallel.checks import check_rows
from e2h_jax.parallel.chosen import begun_with
from e2h_jax.parallel.compilation import clock
from e2h_jax.parallel.devices import free_memory
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.programs import Assumed, Program, Unit
from e2h_jax.parallel.progress import Estimate, about
from e2h_jax.parallel.rules import axis_size
from e2h_jax.parallel.shapes import device_bytes
from e2h_jax.sampling.choose import Settings
from e2h_jax.sampling.grouping import grouping
from e2h_jax.sampling.kernel import BLOCK, BLOCKS, Description, Kernel, suffix_sizes
from e2h_jax.sampling.prompts import fitting, prompts_of, show_first
from e2h_jax.sampling.roofline import Roofline
from e2h_jax.sampling.scheduler import Drawn, Request, draw

MOST_ROWS = 256  # of a shard, where memory decides: more hardly make a step better
SHARE = 0.6  # of the free memory that caches and logits may take; the rest is for what a step and a prefill need meanwhile
LOGITS = 6  # arrays [rows, V] while a token is chosen
ENOUGH = 32  # samples that have ended, or seconds, until it is told how long all will take
ASSUMED_END = (2,)  # the ids at which rows end, where there is no tokenizer yet; what they are changes no shape


def defaults() -> ml_collections.ConfigDict:
    """Fields of the `sample` stage."""
    config = ml_collections.ConfigDict()
    config.model = ""  # model/ folder of a policy
    config.problems = ""  # problem records
    config.levels = ()  # problems of these levels only; () = all
    config.limit = 0  # the first so many problems; 0 = all
    config.template = "e2h"  # text format; chat = the one that the model's model.json records
    config.seed = 0
    config.samples = 16  # per problem
    config.temperature = 0.7  # 0 = greedy
    config.top_k = 20  # 0 = off
    config.top_p = 1.0  # 1 = off
    config.min_p = 0.0  # tokens less likely than this share of the most likely one's probability are left out; 0 = off
    config.max_new_tokens = 1024
    config.too_long = "error"  # a prompt that leaves no room for `max_new_tokens`: error | drop its problem (and count)
    config.rows = 256  # sequences decoded together, over all devices, at most; 0 = what memory allows, up to 256 a device
    config.rows_per_prompt = 0  # of them that share a prompt's cache; 0 = by the numbers of problems and `samples`
    config.prompt_bucket = 64  # prompts are padded to this times 1, 2, 4, 8, …
    config.mesh = (1, -1, 1)  # devices along (data, fsdp, tensor)
    config.dtype = ""  # compute dtype: float32 | bfloat16; "" = float32 on CPUs, the model's own on accelerators
    config.quantize = ""  # int8 = weights in int8, half the memory of bfloat16 (docs/memory.md); "" = off
    return config.lock()


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
    """Writes `workdir/samples-*.jsonl`; returns counts and rates. Raises UserError for bad settings or data."""
    workdir = Path(workdir)
    check_values(config)
    width = store.load_config(config.model)[1].width  # raises where there is no model
    mesh, compiled = make_mesh(config.mesh, rows=(config.rows,), width=width), compilation.seconds()
    tokenizer, first = load_tokenizer(config.model), jax.process_index() == 0
    template = policy_template(config.template, config.model, tokenizer, tell=first)
    resumed = any(path.stat().st_size for path in workdir.glob("samples-*"))
    dtype = store.begun_dtype(workdir, config.dtype, Path(config.model), mesh, resumed)
    graph, model_config, params = store.load_frozen(Path(config.model), mesh, "policy", dtype, config.quantize)
    problems = select_levels(read_many(config.problems, "problem"), config.levels)
    problems = problems[: config.limit or None]
    prompts = prompts_of(tokenizer, problems, template)
    show_first(tokenizer, prompts, template)
    fits, prompts = fitting(problems, prompts, model_config.max_length, config.max_new_tokens, config.too_long)
    problems, dropped = fits, len(problems) - len(fits)
    key = lambda record: (record["problem_id"], record["sample"])  # noqa: E731
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    with ShardWriter(workdir, "samples", key=key, **process) as writer:
        inputs = {"model": store.identity(config.model), "problems": digest(*map(json.dumps, problems)).hex()}
        doing = "sampling from another model or for other problems"
        check_same(workdir / "inputs.json", inputs, resumed=bool(writer.done), write=first, doing=doing)
        keep_template(workdir, template, resumed=bool(writer.done), write=first)  # `evaluate` finds the answers by it
        requests = []
        for problem, tokens in zip(problems, prompts, strict=True):
            missing = [i for i in range(config.samples) if (problem["id"], i) not in writer.done]
            if missing:
                requests.append(Request(problem["id"], tokens, missing))
        lengths = [len(request.tokens) for request in requests]
        ends = end_ids(tokenizer, template)
        longest = max(lengths, default=0)
        if not config.rows:
            free, needed = free_memory(mesh.local_devices[0], sharing=len(mesh.local_devices)), len(problems) * config.samples
            rows = begun_with(workdir, "rows", lambda: rows_that_fit(config, model_config, mesh, longest, free, needed))
            config = ml_collections.ConfigDict(config.to_dict() | {"rows": rows})
        # Of all problems, not of those with missing samples: a resumed run must have the shapes of the whole one.
        kernel = make_kernel(config, graph, model_config, params, mesh, ends, longest, prompts=len(problems), taken=True)
        kernel.foresee(lengths)
        roofline = Roofline(kernel)
        began = clock()

        total, mine = len(problems) * config.samples, kernel.groups_of(jax.process_index())
        missing = sum(len(request.samples) for request in requests)
        sums = dict.fromkeys(("kept", "computed", "ended", "stopped", "prefill", "decode", "ideal", "busy"), 0.0)
        with (
            MetricsWriter(workdir, resume_step=total - missing, enabled=jax.process_index() == 0) as metrics,
            tqdm(
                total=total, initial=total - missing, unit="sample", desc=workdir.name, disable=jax.process_index() > 0
            ) as bar,
        ):
            estimate = Estimate(bar)
            for round_ in draw(kernel, requests, stop_texts(tokenizer, template)):
                writer.write(_records([d for d in round_.drawn if d.group in mine], tokenizer, template, ends))
                sums["kept"] += sum(len(drawn.tokens) for drawn in round_.drawn)
                sums["stopped"] += sum(drawn.stopped for drawn in round_.drawn)
                sums["computed"] += round_.steps * kernel.groups * kernel.rows
                sums["busy"] += round_.busy_tokens
                sums["prefill"] += round_.prefill_seconds
                sums["decode"] += round_.decode_seconds
                sums["ideal"] += roofline.seconds(round_)
                bar.update(len(round_.drawn))
                sums["ended"] += len(round_.drawn)
                passed = clock() - began
                left = seconds_left(sums["ended"], sums["busy"], missing, config.max_new_tokens, passed)
                if sums["ended"] >= min(ENOUGH, missing / 4) or passed > ENOUGH:
                    estimate.tell(left, sums["busy"] / passed)
                rate = sums["kept"] / passed
                busy = round_.busy_tokens / max(1, round_.steps * kernel.groups * kernel.rows)
                rows = f"{busy:.0%} of {kernel.groups * kernel.rows} rows busy"
                bar.set_postfix_str(f"{rate:,.0f} tokens/s, {about(left)} left, {rows}")
                metrics.write(int(bar.n), {"tokens_per_second": rate, "rows_busy": busy})
    seconds = clock() - began
    return {
        "samples": total,
        "dropped": dropped,  # problems
        "drawn_now": missing,
        "stopped": sums["stopped"] / max(1, missing),  # share that ended by EOS or a stop text
        "tokens": int(sums["kept"]),
        "tokens_per_second": sums["kept"] / seconds,
        "useful_tokens": sums["kept"] / max(1, sums["computed"]),  # share of computed tokens that were kept
        "rows_busy": sums["busy"] / max(1, sums["computed"]),
        "prefill_share": sums["prefill"] / seconds,
        "decode_share": sums["decode"] / seconds,
        "roofline": sums["ideal"] / max(1e-9, sums["decode"])
        if roofline.known
        else None,  # decode at the device's limits / as it was
        "compile_seconds": compilation.seconds() - compiled,
    }


def keep_template(folder: str | Path, template: Template, *, resumed: bool, write: bool) -> None:
    """Records the template that the samples in `folder` are drawn in; UserError if a resumed run was begun in another one.

    Args:
      resumed: samples are there already.
      write: whether this process is the one that writes.
    """
    recorded = recorded_template(folder) if resumed else None
    if recorded is None and write:
        write_template(Path(folder) / RECORD, template)
    elif recorded not in (None, template):
        raise UserError(
            f'{folder}: its samples were drawn in another template ("{recorded.name}", which {RECORD} describes); set '
            "config.template to that one again, or delete the folder"
        )


def make_kernel(
    config: ml_collections.ConfigDict,
    graph: nnx.GraphDef,
    model_config: LlamaConfig,
    params: nnx.State,
    mesh: Mesh,
    end_ids: tuple[int, ...],
    longest: int,
    *,
    prompts: int = 0,
    taken: bool = False,
) -> Kernel:
    """The kernel that draws as `config` says (the fields of this stage), to be compiled; UserError if the longest prompt is too
    long for it. `prompts`: see `grouping`. `taken`: out of `params`, see `Kernel.update`."""
    shards = axis_size(mesh, "batch")
    if longest + config.max_new_tokens > model_config.max_length:
        raise UserError(
            f"a prompt of {longest} tokens and config.max_new_tokens={config.max_new_tokens} exceed the model's "
            f"{model_config.max_length} positions; lower max_new_tokens"
        )
    groups, rows = grouping(config.rows, shards, prompts, config.samples, config.rows_per_prompt)
    settings = Settings(
        config.max_new_tokens,
        end_ids,
        config.temperature,
        config.top_k,
        config.top_p,
        config.min_p,
    )
    return Kernel(
        graph,
        model_config,
        params,
        mesh,
        groups=groups,
        rows=rows,
        seed=config.seed,
        settings=settings,
        prompt_bucket=config.prompt_bucket,
        taken=taken,
    )


def seconds_left(ended: float, drawn: float, samples: int, most: int, passed: float) -> float:
    """For the rest of so many samples, `ended` of which have ended when `drawn` tokens in all were drawn in `passed` seconds.

    Samples that go on tell something, too: were one as likely to end at any token, a mean length of drawn / ended would be the
    likeliest. None has more than `most` tokens.
    """
    mean = min(most, drawn / ended) if ended else most
    return max(0.0, samples * mean - drawn) * passed / max(1.0, drawn)


def rows_that_fit(
    config: ml_collections.ConfigDict, model_config: LlamaConfig, mesh: Mesh, longest: int, free: float, needed: int
) -> int:
    """The rows, over all devices, whose caches and logits find room: at least one a shard, at most MOST_ROWS or the `needed`.

    `free`: bytes of a device beside the weights; `longest`: tokens of the longest prompt.
    """
    c, shards, group = model_config, axis_size(mesh, "batch"), config.rows_per_prompt or min(16, -(-config.samples // 4))
    column = 2 * c.layers * c.kv_heads * c.head_dim * jnp.dtype(c.dtype).itemsize  # keys and values
    prompts = 2 * sum(chunk_sizes(config.prompt_bucket, longest)) * column + 2 * 4 * c.vocab_size  # of a group, logits too
    row = (sum(suffix_sizes(config.max_new_tokens, MOST_ROWS)) + BLOCK) * column + LOGITS * 4 * c.vocab_size
    fit = SHARE * free * axis_size(mesh, "kv_heads") / (row + prompts / group)  # of a shard
    wanted = -(-needed // shards)
    most = max(1, min(fit, MOST_ROWS, -(-wanted // group) * group))
    return int(most // group * group or most) * shards


def programs(config: ml_collections.ConfigDict, mesh: Mesh, assumed: Assumed) -> Iterator[Program]:
    """The programs that `run` compiles, see parallel/programs.py."""
    check(config)
    described = assumed.model(config.model)
    dtype = config.dtype or store.compute_dtype(described, mesh)
    graph, model_config, params = store.load_frozen(described, mesh, "policy", dtype, config.quantize)
    unit = Unit("1M sampled tokens", 1e6)
    positions = model_config.max_length
    drawing = describe(config, graph, model_config, params, mesh, assumed, positions, prompts=config.limit, taken=True)
    load = drawing.description.load
    yield Program("load", load.function, load.arguments, mesh, {"parameters": (load.arguments, load.beside)}, unit, runs=0)
    yield from drawing.programs({}, unit, unit.tokens)


class Drawing(NamedTuple):
    """A kernel that only exists as shapes, and what is assumed of its work."""

    kernel: Kernel
    description: Description
    samples: int  # of a prompt
    prompt_tokens: int
    solution_tokens: int

    def programs(self, held: Mapping[str, Any], unit: Unit, tokens: float) -> Iterator[Program]:
        """Prefill and decode of so many drawn tokens a unit; `held` is what lies on the devices besides weights and caches."""
        kernel, description = self.kernel, self.description
        mine = {"parameters": description.weights, "cache": (description.prompts, description.suffixes)}
        held = {name: (held.get(name), mine.get(name)) for name in held | mine}
        work = Roofline(kernel).work(BLOCK * BLOCKS, kernel.read_columns(self.prompt_tokens, self.solution_tokens))
        prefills = tokens / self.solution_tokens / self.samples / kernel.shards
        dispatches = tokens / (kernel.groups * kernel.rows * BLOCK * BLOCKS)
        yield Program("prefill", *description.prefill, kernel.mesh, held, unit, prefills)
        yield Program("decode", *description.decode, kernel.mesh, held, unit, dispatches, (BLOCKS, BLOCK), work)


def describe(
    config: ml_collections.ConfigDict,
    graph: nnx.GraphDef,
    model_config: LlamaConfig,
    params: nnx.State,
    mesh: Mesh,
    assumed: Assumed,
    positions: int,
    *,
    prompts: int = 0,
    beside: Kernel | None = None,
    taken: bool = False,
) -> Drawing:
    """The kernel of `make_kernel` for the longest prompt that is assumed; `params` are shapes.

    Args:
      positions: that prompt and solution may take together.
      prompts: see `grouping`.
      beside: another kernel, whose weights it uses.
      taken: the kernel takes its weights out of `params`, see `Kernel.update`.
    """
    why = f"config.max_new_tokens={config.max_new_tokens} of {positions} positions"
    prompt = assumed.prompt(positions - config.max_new_tokens, why)
    if not config.rows:
        free = free_memory(mesh.devices.flat[0], described=True) - device_bytes(params)
        rows = rows_that_fit(config, model_config, mesh, prompt, free, MOST_ROWS * mesh.devices.size)
        config = ml_collections.ConfigDict(config.to_dict() | {"rows": rows})
    kernel = make_kernel(config, graph, model_config, params, mesh, ASSUMED_END, prompt, prompts=prompts, taken=taken)
    if beside is not None:
        kernel.adopt(beside)
    solution = assumed.solution(config.max_new_tokens)
    return Drawing(kernel, kernel.describe(params, prompt, taken=taken), config.samples, prompt, solution)


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values that make no sense, before any file is read: a recipe asks all its stages first."""
    if not config.model:
        raise UserError("config.model is empty; name the model/ folder of a finished stage")
    if config.limit < 0:
        raise UserError("config.limit must be at least 0 (0 = all)")
    check(config)
    check_rows(make_mesh(config.mesh, rows=(config.rows,)), rows=config.rows)
    store.check(config.dtype, config.quantize)


def check(config: ml_collections.ConfigDict, least_rows: int = 0) -> None:
    """Raises UserError for settings that no sampler can work with."""
    if min(config.samples, config.max_new_tokens, config.prompt_bucket) < 1:
        raise UserError("config.samples, config.max_new_tokens and config.prompt_bucket must be at least 1")
    if config.rows < least_rows:
        remedy = "" if least_rows else " (0 = as many as memory allows)"
        raise UserError(f"config.rows must be at least {least_rows}{remedy}")
    if config.too_long not in ("error", "drop"):
        raise UserError(f"config.too_long={config.too_long!r} must be error or drop")
    if config.rows_per_prompt < 0:
        raise UserError("config.rows_per_prompt must be at least 0 (0 = chosen)")
    positive = 0 <= config.temperature < math.inf and 0 <= config.top_k  # NaN is neither
    if not (positive and 0 < config.top_p <= 1 and 0 <= config.min_p < 1):
        raise UserError("config.temperature and config.top_k must be >= 0, config.top_p in (0, 1] and config.min_p in [0, 1)")
    if config.temperature == 0 and config.samples > 1:
        raise UserError("config.temperature=0 draws the same solution every time; set config.samples=1")


def _records(drawn: list[Drawn], tokenizer, template: Template, ends: tuple[int, ...]) -> list[dict]:
    return [
        {
            "problem_id": sample.problem_id,
            "sample": sample.sample,
            "text": decode_solution(tokenizer, sample.tokens, template, ends),
            "finish": "stop" if sample.stopped else "length",
            "logprob": float(sample.logprobs.astype(np.float64).sum()),
        }
        for sample in drawn
    ]


def stop_texts(tokenizer, template: Template) -> Callable[[np.ndarray], int | None] | None:
    """For `draw`: how many tokens of a row to keep, up to the one that completes a stop text; None where there is none yet.

    Stop texts that are tokens of their own are left out: rows end at those on the device, see `end_ids`.
    """
    ended = {tokenizer.convert_ids_to_tokens(index) for index in end_ids(tokenizer, template)}
    stops = [text for text in template.stop if text not in ended]
    if not stops:
        return None
    # A row is asked about after every dispatch, so the end of it is enough: a byte of a stop text is one token at most.
    tail = BLOCK * BLOCKS + max(len(text.encode()) for text in stops)

    def stop(tokens: np.ndarray) -> int | None:
        start = max(0, len(tokens) - tail)
        decode = lambda end: tokenizer.decode(tokens[start:end], skip_special_tokens=True)  # noqa: E731
        if not any(text in decode(len(tokens)) for text in stops):
            return None
        return next(end for end in range(start + 1, len(tokens) + 1) if any(text in decode(end) for text in stops))

    return stop
