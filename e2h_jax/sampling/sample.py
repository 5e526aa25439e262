"""Sampling: N solutions of every problem from a policy, to sample records.

Each prompt is prefilled once for its N samples; rows stop at EOS or at the template's stop texts, and take the next sample at
once. A problem with a `prefix`, the beginning of a solution, is continued from there. A sample depends on (seed, problem id,
sample index) alone: not on order, subset or resume, bit for bit; with another number of rows or mesh, the last bits of its
`logprob` may differ (and two tokens that tie within rounding may swap). Interrupted runs continue with the samples that are
missing. On several hosts each writes the samples of its own rows.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from e2h_jax.data.records import read_many, select_levels
from e2h_jax.data.storage import ShardWriter, as_json, check_same, digest
from e2h_jax.data.templates import RECORD, Template, get_template
from e2h_jax.data.tokenizer import decode_solution, end_ids, load_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.metrics import MetricsWriter
from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.checks import check_rows
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.programs import Assumed, Program, Unit
from e2h_jax.parallel.rules import axis_size
from e2h_jax.sampling.choose import Settings
from e2h_jax.sampling.kernel import BLOCK, BLOCKS, Description, Kernel
from e2h_jax.sampling.prompts import fitting, prompts_of
from e2h_jax.sampling.roofline import Roofline
from e2h_jax.sampling.scheduler import Drawn, Request, draw

ASSUMED_END = (2,)  # the ids at which rows end, where there is no tokenizer yet; what they are changes no shape


def defaults() -> ml_collections.ConfigDict:
    """Fields of the `sample` stage."""
    config = ml_collections.ConfigDict()
    config.model = ""  # model/ folder of a policy
    config.problems = ""  # problem records
    config.levels = ()  # problems of these levels only; () = all
    config.limit = 0  # the first so many problems; 0 = all
    config.template = "e2h"
    config.seed = 0
    config.samples = 16  # per problem
    config.temperature = 0.7  # 0 = greedy
    config.top_k = 20  # 0 = off
    config.top_p = 1.0  # 1 = off
    config.min_p = 0.0  # tokens less likely than this share of the most likely one's probability are left out; 0 = off
    config.max_new_tokens = 1024
    config.too_long = "error"  # a prompt that leaves no room for `max_new_tokens`: error | drop its problem (and count)
    config.rows = 256  # sequences decoded together, over all devices; limits memory
    config.rows_per_prompt = 0  # of them that share a prompt's cache; 0 = a quarter of `samples`, from 1 to 16
    config.prompt_bucket = 64  # prompts are padded to this times 1, 2, 4, 8, …
    config.mesh = (1, -1, 1)  # devices along (data, fsdp, tensor)
    config.dtype = ""  # compute dtype; "" = the model's own
    config.quantize = ""  # int8 = weights in int8, half the memory of bfloat16 (docs/memory.md); "" = off
    return config.lock()


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
    """Writes `workdir/samples-*.jsonl`; returns counts and rates. Raises UserError for bad settings or data."""
    workdir = Path(workdir)
    check_values(config)
    mesh = make_mesh(config.mesh, rows=(config.rows,), width=store.load_config(Path(config.model))[1].width)
    graph, model_config, params = store.load_frozen(Path(config.model), mesh, "policy", config.dtype, config.quantize)
    tokenizer, template = load_tokenizer(config.model), get_template(config.template)
    problems = select_levels(read_many(config.problems, "problem"), config.levels)
    problems = problems[: config.limit or None]
    prompts = prompts_of(tokenizer, problems, template)
    fits, prompts = fitting(problems, prompts, model_config.max_length, config.max_new_tokens, config.too_long)
    problems, dropped = fits, len(problems) - len(fits)
    key = lambda record: (record["problem_id"], record["sample"])  # noqa: E731
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    with ShardWriter(workdir, "samples", key=key, **process) as writer:
        inputs = {"model": store.identity(config.model), "problems": digest(*map(json.dumps, problems)).hex()}
        doing, first = "sampling from another model or for other problems", jax.process_index() == 0
        check_same(workdir / "inputs.json", inputs, resumed=bool(writer.done), write=first, doing=doing)
        written = {"resumed": bool(writer.done), "write": first, "doing": "sampling with another template"}
        check_same(workdir / RECORD, as_json(asdict(template)), **written)  # `evaluate` finds the answers by it
        requests = []
        for problem, tokens in zip(problems, prompts, strict=True):
            missing = [i for i in range(config.samples) if (problem["id"], i) not in writer.done]
            if missing:
                requests.append(Request(problem["id"], tokens, missing))
        began = time.perf_counter()
        lengths = [len(request.tokens) for request in requests]
        ends = end_ids(tokenizer, template)
        kernel = make_kernel(config, graph, model_config, params, mesh, ends, max(lengths, default=0), taken=True)
        kernel.compile(lengths)
        roofline = Roofline(kernel)
        compiled = time.perf_counter()

        total, mine = len(problems) * config.samples, kernel.groups_of(jax.process_index())
        missing = sum(len(request.samples) for request in requests)
        sums = dict.fromkeys(("kept", "computed", "stopped", "prefill", "decode", "ideal", "busy"), 0.0)
        with (
            MetricsWriter(workdir, resume_step=total - missing, enabled=jax.process_index() == 0) as metrics,
            tqdm(
                total=total, initial=total - missing, unit="sample", desc=workdir.name, disable=jax.process_index() > 0
            ) as bar,
        ):
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
                rate = sums["kept"] / (time.perf_counter() - compiled)
                busy = round_.busy_tokens / max(1, round_.steps * kernel.groups * kernel.rows)
                bar.set_postfix_str(f"{rate:,.0f} tokens/s, {busy:.0%} of {kernel.groups * kernel.rows} rows busy")
                metrics.write(int(bar.n), {"tokens_per_second": rate, "rows_busy": busy})
    seconds = time.perf_counter() - compiled
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
        "compile_seconds": compiled - began,
    }


def make_kernel(
    config: ml_collections.ConfigDict,
    graph: nnx.GraphDef,
    model_config: LlamaConfig,
    params: nnx.State,
    mesh: Mesh,
    end_ids: tuple[int, ...],
    longest: int,
    *,
    taken: bool = False,
) -> Kernel:
    """The kernel that draws as `config` says (the fields of this stage), to be compiled; UserError if the longest prompt is too
    long for it. `taken`: out of `params`, see `Kernel.update`."""
    shards = axis_size(mesh, "batch")
    if longest + config.max_new_tokens > model_config.max_length:
        raise UserError(
            f"a prompt of {longest} tokens and config.max_new_tokens={config.max_new_tokens} exceed the model's "
            f"{model_config.max_length} positions; lower max_new_tokens"
        )
    # With a quarter of them, a prompt's last samples end before the next prompt's have all begun.
    rows = min(config.rows_per_prompt or min(16, -(-config.samples // 4)), config.rows // shards)
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
        groups=config.rows // rows // shards * shards,
        rows=rows,
        seed=config.seed,
        settings=settings,
        prompt_bucket=config.prompt_bucket,
        taken=taken,
    )


def programs(config: ml_collections.ConfigDict, mesh: Mesh, assumed: Assumed) -> Iterator[Program]:
    """The programs that `run` compiles, see parallel/programs.py."""
    check(config)
    described = assumed.model(config.model)
    graph, model_config, params = store.load_frozen(described, mesh, "policy", config.dtype, config.quantize)
    unit = Unit("1M sampled tokens", 1e6)
    drawing = describe(config, graph, model_config, params, mesh, assumed, model_config.max_length, taken=True)
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
    beside: Kernel | None = None,
    taken: bool = False,
) -> Drawing:
    """The kernel of `make_kernel` for the longest prompt that is assumed; `params` are shapes.

    Args:
      positions: that prompt and solution may take together.
      beside: another kernel, whose weights it uses.
      taken: the kernel takes its weights out of `params`, see `Kernel.update`.
    """
    why = f"config.max_new_tokens={config.max_new_tokens} of {positions} positions"
    prompt = assumed.prompt(positions - config.max_new_tokens, why)
    kernel = make_kernel(config, graph, model_config, params, mesh, ASSUMED_END, prompt, taken=taken)
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


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for numbers that no sampler can work with."""
    if min(config.samples, config.rows, config.max_new_tokens, config.prompt_bucket) < 1:
        raise UserError("config.samples, config.rows, config.max_new_tokens and config.prompt_bucket must be at least 1")
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
