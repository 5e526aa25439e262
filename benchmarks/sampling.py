"""Side by side: this sampler, Hugging Face `generate`, tunix's `Sampler`. Same weights, prompts and numbers of tokens.

    python -m venv /tmp/tunix && /tmp/tunix/bin/pip install google-tunix==0.1.7 jax==0.10.2 flax==0.12.8
    pip install torch==2.13.0
    python benchmarks/sampling.py --tunix=/tmp/tunix/bin/python [--models=tiny,small,135m] [--n=1,4,16,64] [--repeats=3]
    python benchmarks/sampling.py --models=SMOLLM2 --problems=GSM8K/test.jsonl --n=8 --new=64 --lengths=equal [--torch=PYTHON]

Tokens are drawn as `e2h sample` draws them by default (temperature 0.7, of the 20 likeliest); by tunix of all, since its top-k
needs a top-p. --temperature=1 --top_k=0: of all, by all. N = 1 is greedy. 135m has SmolLM2-135M's shape and vocabulary. A model
may also be a folder in Hugging Face's format; with --problems, the prompts are the first four questions of that file, otherwise
random tokens.

Every worker is a process of its own with the model loaded; in each repetition they take turns at the same case, after one
untimed turn of those that compile. Figures are medians over repetitions, ratios medians of ratios within a repetition.
Skewed: a row ends at any of V/128 tokens, so after some 128 tokens, geometrically; here N samples over N/4 slots a prompt, all
N at once for the peers. useful: tokens kept / tokens computed. limit: the time that arithmetic or memory traffic of decoding
needs at the limits measured on this machine (float32 matrix product, one pass over memory) / the time it took.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from e2h_jax.sampling import sample

MODELS = {
    "tiny": dict(
        vocab_size=512, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, head_dim=64
    ),
    "small": dict(
        vocab_size=32_000, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=2048, head_dim=64
    ),
    "135m": dict(
        vocab_size=49_152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        intermediate_size=1536,
        head_dim=64,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "1b": dict(
        vocab_size=32_000, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, intermediate_size=5632, head_dim=64
    ),
}
PROMPTS = {"tiny": 4, "small": 2, "135m": 2, "1b": 1}
HERE = Path(__file__).parent / "sampling_peers"


def make_model(name: str, folder: Path) -> Path:
    """Random weights in Hugging Face's format, and a tokenizer for the form's sake; a link to a model that is there already."""
    if name not in MODELS:
        (folder / Path(name).name).symlink_to(Path(name).resolve())
        return folder / Path(name).name
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from e2h_jax.data import arithmetic
    from e2h_jax.data.tokenizer import build_tokenizer

    torch.manual_seed(0)
    common = {"num_key_value_heads": MODELS[name]["num_attention_heads"], "tie_word_embeddings": False}
    shape = common | MODELS[name] | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    model = LlamaForCausalLM(LlamaConfig(**shape))
    model.save_pretrained(folder / name)
    build_tokenizer(arithmetic.PIECES, folder / name)
    return folder / name


class Worker:
    """One system, waiting for cases."""

    def __init__(self, python: str, script: str, model: Path, **environment: str):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parents[1])} | environment
        environment |= {"OMP_WAIT_POLICY": "PASSIVE"}  # idle workers must not spin beside the one that is timed
        self.process = subprocess.Popen(
            [python, str(HERE / script), str(model)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n", f"{script} did not start"

    def __call__(self, case: dict) -> dict:
        print(json.dumps(case), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[1]} ended in {case}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def questions(model: Path, problems: str, count: int) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [json.loads(line)["question"] for line in Path(problems).read_text().splitlines()[:count]]
    return [tokenizer(text)["input_ids"] for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tunix", help="python of an environment with google-tunix; without it, tunix is left out")
    parser.add_argument("--torch", default=sys.executable, help="python of an environment with torch and transformers")
    parser.add_argument("--models", default="tiny,small")
    parser.add_argument("--problems", help="JSON Lines with a field `question`")
    parser.add_argument("--n", default="1,4,16,64")
    parser.add_argument("--lengths", default="equal,skewed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", help="of torch, one worker each; default: 1, half of the cores, all")
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=sample.defaults().temperature)
    parser.add_argument("--top_k", type=int, default=sample.defaults().top_k)
    arguments = parser.parse_args()
    sizes = [int(n) for n in arguments.n.split(",")]
    print("| model | lengths | N | system | tokens/s | ours / it | useful | limit | peak GB |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.models.split(","):
            model = make_model(name, Path(temporary))
            workers = {"e2h_jax": Worker(sys.executable, "ours.py", model)}
            cores = os.cpu_count() or 1
            default = sorted({1, cores // 2 or 1, cores})
            for threads in map(int, arguments.threads.split(",")) if arguments.threads else default:
                workers[f"transformers, {threads} threads"] = Worker(
                    arguments.torch, "huggingface.py", model, OMP_NUM_THREADS=str(threads)
                )
            if arguments.tunix:
                workers["tunix"] = Worker(arguments.tunix, "tunix_sampler.py", model, PYTHONPATH="")
            for lengths in arguments.lengths.split(","):
                for n in sizes:
                    if lengths == "equal" or n > 1:
                        compare(model, lengths, n, arguments, workers)
            for worker in workers.values():
                worker.close()


def compare(model: Path, lengths: str, n: int, arguments: argparse.Namespace, workers: dict[str, Worker]) -> None:
    name, rng = model.name, np.random.default_rng(0)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    count = PROMPTS.get(name, 4) * (1 if lengths == "equal" else 2)
    if arguments.problems:
        prompts = questions(model, arguments.problems, count)
    else:
        prompts = rng.integers(0, vocabulary, (count, 128)).tolist()
    ends = rng.choice(vocabulary, vocabulary // 128, replace=False).tolist() if lengths == "skewed" else []
    choice = {"temperature": arguments.temperature, "top_k": arguments.top_k} if n > 1 else {"temperature": 0.0, "top_k": 0}
    case = {"prompts": prompts, "n": n, "new": arguments.new, "ends": ends, "choice": choice}
    figures = {system: [] for system in workers}
    for seed in range(arguments.repeats + 1):
        for system, worker in workers.items():
            if not seed and system.startswith("transformers"):
                continue  # nothing to compile
            result = worker(case | {"seed": seed})
            if seed:
                figures[system].append(result | {"rate": result["tokens"] / result["seconds"]})
    if n == 1 and lengths == "equal":
        ours = figures["e2h_jax"][-1]["last"]
        for system, results in figures.items():
            pairs = list(zip(ours, results[-1]["last"], strict=True))
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
            print(f"greedy decoding: the first {same} of {len(ours)} tokens are those of {system}", file=sys.stderr)
    for system, results in figures.items():
        median = lambda key, results=results: statistics.median(result[key] for result in results)  # noqa: E731
        ratio = statistics.median(ours["rate"] / its["rate"] for ours, its in zip(figures["e2h_jax"], results, strict=True))
        useful = statistics.median(result["tokens"] / result["computed"] for result in results)
        limit = statistics.median(r["ideal"] / r["decode"] for r in results) if "ideal" in results[0] else None
        print(
            f"| {name} | {lengths} | {n} | {system} | {median('rate'):,.0f} | {ratio:.2f} | {useful:.2f} | "
            f"{'' if limit is None else f'{limit:.2f}'} | {median('peak_bytes') / 1e9:.2f} |",
            flush=True,
        )
    first = figures["e2h_jax"][0]
    print(f"limits: {first['gflops']:.0f} GFLOP/s, {first['gbytes']:.1f} GB/s", file=sys.stderr)


if __name__ == "__main__":
    main()
