"""Makes the data of the notebooks anew from two finished quickstart runs; what is committed was made by this.

    bash launch/quickstart.sh --config.seed=43 --workdir=runs/43
    bash launch/quickstart.sh --config.seed=41 --workdir=runs/41
    python notebooks/data/make.py runs/43 runs/41

From the first: the pool (a third of the test problems, all 16 solutions of each, PRM and ORM scores, the checker's step
labels), and generator and PRM as Hugging Face folders in bfloat16. From the second: two PPO runs against its PRM, one with the
settings of the quickstart and one with those that docs/quickstart.md calls "Fooled", both of twenty steps.
"""

import gzip
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from e2h_jax import main
from e2h_jax.data.records import Kind, read_many
from e2h_jax.data.storage import json_line

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
THIRD = 3
PPO = {
    "ppo_healthy": ("optimizer.learning_rate=3e-4", "kl.coef=0.1"),  # as configs/quickstart.py
    "ppo_fooled": ("optimizer.learning_rate=6e-4", "kl.coef=0.01"),
}


def e2h(*arguments: str) -> None:
    if code := main.main(arguments):
        sys.exit(code)


def write(path: Path, records: Iterable[dict]) -> None:
    """Writes gzipped JSON Lines; the same records give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"".join(map(json_line, records)), mtime=0))


def make_pool(run: Path) -> None:
    problems = read_many(run / "data" / "test.jsonl", "problem")[::THIRD]
    kept = {problem["id"] for problem in problems}

    def own(path: Path, kind: Kind) -> list[dict]:
        """The records of these problems, in order; numbers with four decimals, which is enough and far smaller."""
        records = [record for record in read_many(path, kind) if record["problem_id"] in kept]
        for record in records:
            for field in ("logprob", "step_scores"):
                if field in record:
                    record[field] = np.round(record[field], 4).tolist()
        return sorted(records, key=lambda record: (record["problem_id"], record["sample"]))

    write(HERE / "pool" / "problems.jsonl.gz", problems)
    write(HERE / "pool" / "samples.jsonl.gz", own(run / "samples", "sample"))
    for evaluator in ("prm", "orm"):
        write(HERE / "pool" / f"{evaluator}.jsonl.gz", own(run / f"score_{evaluator}", "scored"))
    write(HERE / "pool" / "labels.jsonl.gz", own(run / "sample_labels" / "prm.jsonl", "labelled"))


def make_models(run: Path, scratch: Path) -> None:
    for name, stage in (("generator", "sft"), ("prm", "prm")):
        source = f"--config.source={run / stage / 'model'}"
        target = ("--config.to=huggingface", "--config.dtype=bfloat16", f"--workdir={scratch / name}")
        e2h("convert", f"--config={ROOT / 'configs' / 'convert.py'}", source, *target)
        shutil.copytree(scratch / name / "huggingface", HERE / name, dirs_exist_ok=True)


def make_ppo(run: Path, scratch: Path) -> None:
    fields = (
        f"init={run}/sft/model", f"questions={run}/data/rl_questions.jsonl", f"validation.problems={run}/data/validation.jsonl",
        "validation.every=2", "seed=41", "steps=20", "questions_per_step=160", "minibatches=4", "length=128", "forward_rows=16",
        "update_rows=8", "sample.max_new_tokens=56", "sample.top_k=0", "sample.temperature=1.0", "sample.rows=80",
        "value_optimizer.learning_rate=1e-3", f"reward.model={run}/prm/model", "reward.upper_bound=1.0", "reward.scale=2.0",
        "reward.row_length=128", "reward.tokens_per_batch=2048", "lam=0.95", "whiten_rewards=original",  # the default then
    )  # fmt: skip
    for name, own in PPO.items():
        e2h("ppo", *(f"--config.{field}" for field in (*fields, *own)), f"--workdir={scratch / name}")
        (HERE / name).mkdir(exist_ok=True)
        for file in ("metrics.jsonl", "validation.jsonl"):
            shutil.copy(scratch / name / file, HERE / name / file)


if __name__ == "__main__":
    ranked, learned = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        make_pool(ranked)
        make_models(ranked, Path(folder))
        make_ppo(learned, Path(folder))
