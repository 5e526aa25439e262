"""Is a run that was killed, and started again, the undisturbed run? kill -9 at random moments of every stage, on tiny models.

    python benchmarks/faults.py                       # ten kills of each stage
    python benchmarks/faults.py --stages=sft --kills=2

Prints one line a kill and the matrix (stage × kills: how many ended identical); exits with 1 unless all did. Compared are, bit
for bit: parameters, records, metrics and summaries; not clocks, rates, and counts of what one run of several did.

A moment is when a random share of the undisturbed run's metrics and records is written, and up to a tenth of a second later
(whatever the machine's load); one kill in five comes before the first of them instead, while the stage starts. Moments are
drawn until so many kills have landed: one that finds the stage at its end is not counted.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import numpy as np

from e2h_jax import main as e2h
from e2h_jax.algorithms import sft
from e2h_jax.data import arithmetic
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template
from e2h_jax.data.tokenizer import build_tokenizer
from e2h_jax.models import store
from e2h_jax.models.arrays import open_arrays
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh

# Every stage runs in a process that is forked from one that has imported everything and done nothing else.
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["__main__", "e2h_jax.algorithms.ppo", "e2h_jax.algorithms.dpo", "e2h_jax.algorithms.rest_em"])
CLOCKS = ("time", "second", "share", "roofline", "rows_busy", "useful_tokens")  # in names of what may differ
ONE_RUN = ("drawn_now", "scored_now", "stopped", "tokens", "padding")  # of `sample` and `score`: of the last run alone


def prepare(folder: Path) -> dict[str, list[str]]:
    """Writes models and data; returns the arguments of each stage."""
    tokenizer = build_tokenizer(arithmetic.PIECES, folder / "tokenizer")
    shape = dict(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64, max_length=192)
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    for name, kind, seed in (("random", "policy", 1), ("reward", "reward", 2)):
        config = LlamaConfig(len(tokenizer), **shape)
        store.save(folder / name, kind, config, store.create(kind, config, mesh, seed)[1], tokenizer)
    template, problems = get_template("e2h"), [*arithmetic.problems(0, "train", 1, 200)]
    solved = [p | {"solution": template.format_solution(*arithmetic.solve(p["question"]))} for p in problems]
    write_records(folder / "solved.jsonl", solved)
    write_records(folder / "few.jsonl", problems[:24])
    samples = [{"problem_id": p["id"], "sample": 0, "text": p["solution"], "finish": "stop", "logprob": 0.0} for p in solved]
    samples += [record | {"sample": n, "text": record["text"][: -2 * n]} for record in samples for n in range(1, 8)]
    write_records(folder / "samples.jsonl", samples)
    labelled = [
        {"problem_id": None, "question": p["question"], "prefix": "", "steps": [*steps, f"# Answer\n\n{answer}"]}
        | {"labels": [1.0, *[float(number % 2)] * len(steps)], "level": 1}
        for number, p in enumerate(problems)
        for steps, answer in [arithmetic.solve(p["question"])]
    ]
    write_records(folder / "labelled.jsonl", labelled)
    names = ("random", "reward", "solved.jsonl", "labelled.jsonl", "few.jsonl", "samples.jsonl")
    data = {name: str(folder / name) for name in names}
    data["policy"] = str(folder / "policy" / "model")
    training = {"length": 64, "batch_size": 8, "epochs": 3, "log_every": 1, "checkpoint_every": 9}
    drawing = {"max_new_tokens": 48, "temperature": 1.0, "top_k": 0, "rows": 8}
    within = {f"sample.{name}": value for name, value in drawing.items()}
    rounds = within | {
        **{"init": data["policy"], "questions": data["few.jsonl"], "rounds": 2, "sample.samples": 8},
        **{f"train.{name}": training[name] for name in ("length", "batch_size", "log_every")},
        **{"train.epochs": 2, "train.checkpoint_every": 2, "validation.problems": data["few.jsonl"]},
        **{"reward_model": data["reward"], "score.tokens_per_batch": 1024},
    }
    stages = {
        "sft": training | {"init": data["random"], "data": data["solved.jsonl"]},
        "reward": training | {"init": data["random"], "data": data["labelled.jsonl"], "lm_loss": 0.3, "position_gap": 20},
        "sample": drawing | {"model": data["policy"], "problems": data["few.jsonl"], "samples": 32},
        "score": {
            **{"model": data["reward"], "samples": data["samples.jsonl"], "problems": data["solved.jsonl"]},
            **{"tokens_per_batch": 256, "length_bucket": 128},
        },
        "ppo": within
        | {
            **{"init": data["policy"], "value_init": data["policy"], "questions": data["few.jsonl"], "steps": 12},
            **{"questions_per_step": 4, "sample.samples": 2, "minibatches": 2, "length": 128, "forward_rows": 4},
            **{"update_rows": 4, "checkpoint_every": 4, "reward.process": "none", "validation.problems": data["few.jsonl"]},
            "validation.every": 5,
        },
        # Nothing that an untrained model writes is right: what is kept and paired is what the reward model likes.
        "rest_em": rounds | {"train.too_long": "drop", "threshold": 0.0},
        "dpo": rounds | {"margin": 0.0, "margin_hidden": 0.0},
    }
    # A policy that ends its solutions: rounds keep no others.
    config = sft.defaults().unlock()
    config.update(training | {"init": data["random"], "data": data["solved.jsonl"], "log_every": 100, "epochs": 8})
    config.optimizer.learning_rate = 1e-2
    sft.run(config, folder / "policy")
    return {
        name: [*(f"--config.{field}={value}" for field, value in (fields | {"mesh": (1, 1, 1)}).items())]
        for name, fields in stages.items()
    }


def start(stage: str, arguments: list[str], workdir: Path) -> BaseProcess:
    process = FORKS.Process(target=_stage, args=([stage, f"--workdir={workdir}", *arguments], workdir.with_suffix(".log")))
    process.start()
    return process


def _stage(command: list[str], log: Path) -> None:
    """`e2h` with this command line, in a process group of its own."""
    os.setpgid(0, 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.exit(e2h.main(command))


def progress(workdir: Path) -> int:
    """Bytes of metrics and records so far."""
    written = 0
    for folder, _, names in os.walk(workdir):  # checkpoints come and go under it
        for name in names:
            if name.endswith("metrics.jsonl") or "-of-" in name:
                with contextlib.suppress(FileNotFoundError):
                    written += (Path(folder) / name).stat().st_size
    return written


def run(stage: str, arguments: list[str], workdir: Path) -> float:
    """Runs a stage to its end; returns the seconds to its first record."""
    began, process = time.perf_counter(), start(stage, arguments, workdir)
    while not progress(workdir) and process.is_alive():
        time.sleep(0.01)
    first = time.perf_counter() - began
    process.join()
    if code := process.exitcode:
        raise SystemExit(f"{stage} ended with {code}:\n" + workdir.with_suffix(".log").read_text()[-3000:])
    return first


def kill(stage: str, arguments: list[str], workdir: Path, written: int, seconds: float) -> bool:
    """Starts a stage and kills it, with its worker processes, so long after it has written so much; False if it had ended."""
    process = start(stage, arguments, workdir)
    while progress(workdir) < written and process.is_alive():
        time.sleep(0.01)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):  # so early that it has no group yet, or ended
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def results(workdir: Path) -> dict[str, object]:
    """Everything in a finished folder that a kill must not change."""
    found: dict[str, object] = {}
    for model in sorted(workdir.rglob("model.json")):
        for name, array in open_arrays(model.parent / "params").items():
            found[f"{model.parent.relative_to(workdir)}: {name}"] = np.asarray(array.read().result()).tobytes()
    for path in sorted(workdir.rglob("*.jsonl")):
        lines = sorted(json.dumps(_lasting(json.loads(line)), sort_keys=True) for line in path.read_text().splitlines())
        if path.name == "metrics.jsonl" and list(path.parent.glob("*-of-*.jsonl")):
            continue  # rates of sampling and scoring, nothing else
        found[str(path.relative_to(workdir))] = lines
    summary = _lasting(json.loads((workdir / "done.json").read_text())["metrics"])
    if list(workdir.glob("*-of-*.jsonl")):
        summary = {name: value for name, value in summary.items() if name not in ONE_RUN}
    return found | {"done.json": summary}


def _lasting(record: dict) -> dict:
    return {name: value for name, value in record.items() if not any(clock in name for clock in CLOCKS)}


def compare(stage: str, arguments: list[str], folder: Path, kills: int, seed: int) -> list[bool]:
    """Of so many runs that were killed and started again, whether each ended as the undisturbed one; prints a line for each."""
    draw, same = random.Random(f"{seed} {stage}"), []
    first = run(stage, arguments, folder / f"{stage}-whole")
    expected, whole = results(folder / f"{stage}-whole"), progress(folder / f"{stage}-whole")
    for number in range(4 * kills):
        if len(same) == kills:
            break
        workdir, share, later = folder / f"{stage}-{number}", draw.random(), 0.1 * draw.random()
        if number % 5 == 4:
            when, moment = f"{share * first:.1f} s after its start", (0, share * first)
        else:
            when, moment = f"{later:.3f} s after {share:.0%} of its records", (share * whole, later)
        landed = kill(stage, arguments, workdir, *moment)
        run(stage, arguments, workdir)
        found = results(workdir)
        different = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        if landed or different:
            same.append(not different)
        how = "identical" if not different else f"DIFFERENT: {', '.join(sorted(different))}"
        print(f"{stage}  kill {number}  {when}{'' if landed else ' (had ended: not counted)'}  {how}", flush=True)
        if not different:
            shutil.rmtree(workdir)
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default="sft,reward,sample,score,ppo,rest_em,dpo")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="e2h_faults_"))
    # Hundreds of processes run the same programs for a moment.
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    stages = prepare(folder)
    names = chosen.stages.split(",")
    matrix = {stage: compare(stage, stages[stage], folder, chosen.kills, chosen.seed) for stage in names}
    print("\n| stage | kills | identical |\n| --- | --- | --- |")
    for stage, same in matrix.items():
        print(f"| {stage} | {len(same)} | {sum(same)} |")
    if right := all(len(same) == chosen.kills and all(same) for same in matrix.values()):
        shutil.rmtree(folder)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
