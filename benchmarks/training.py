"""Side by side on a CPU: a LoRA training step and a scoring pass, here and in plain PyTorch. Same weights, same tokens.

    pip install torch==2.13.0
    python benchmarks/training.py --model=FOLDER [--rows=2] [--length=512] [--steps=3] [--repeats=3]

FOLDER is a Llama of Hugging Face, such as SmolLM2-135M-Instruct. lora: forward, backward and AdamW of factors of rank 16 beside
all projections, float32, on full rows of random tokens, cross-entropy over all of them; in PyTorch a plain loop with the
attention of its own (`sdpa`), no recomputation. score: one number per token from the last hidden states, no gradient.

Each worker is a process with the model loaded. In each repetition they take turns; figures are medians, ratios medians of
ratios within a repetition. Threads: of PyTorch; XLA takes all cores. `remat`: what the backward pass recomputes here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RANK, ALPHA, RATE = 16, 32.0, 1e-4


def torch_worker(folder: str, rows: int, length: int):
    """`lora()` and `score()`, each one step, which return a number."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)

    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear):
            super().__init__()
            self.base = base
            self.a = nn.Parameter(torch.randn(RANK, base.in_features) * base.in_features**-0.5)
            self.b = nn.Parameter(torch.zeros(base.out_features, RANK))

        def forward(self, x):
            return self.base(x) + (x @ self.a.T) @ self.b.T * (ALPHA / RANK)

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).model
    for layer in model.model.layers:
        for part, names in ((layer.self_attn, "qkvo"), (layer.mlp, ("gate", "up", "down"))):
            for name in names:
                setattr(part, f"{name}_proj", Adapted(getattr(part, f"{name}_proj")))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    ids = torch.tensor(tokens_of(folder, rows, length))
    head = torch.randn(plain.config.hidden_size)

    def lora() -> float:
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item()

    @torch.inference_mode()
    def score() -> float:
        return (plain(ids).last_hidden_state @ head).sum().item()

    return {"lora": lora, "score": score}


def our_worker(folder: str, rows: int, length: int, remat: str):
    """The same by the functions that the stages `sft` and `score` call."""
    import jax
    from ml_collections import ConfigDict

    from e2h_jax.algorithms import sft
    from e2h_jax.models import convert, lora, store
    from e2h_jax.rewards.scoring import Batch, Scorer
    from e2h_jax.training import loop, optimizer

    with tempfile.TemporaryDirectory() as made:
        source = {"source": folder, "dtype": "float32"}
        convert.run(ConfigDict(convert.defaults().to_dict() | source), Path(made))
        config = ConfigDict(sft.defaults()).unlock()
        config.update({"init": f"{made}/model", "length": length, "batch_size": rows, "remat": remat, "lora": {"rank": RANK}})
        mesh = loop.mesh_of(config, store.load_config(Path(config.init))[1].width)
        graph, _, params, frozen = lora.load(config, mesh, "policy")
        scorer = Scorer(*store.load(Path(config.init), mesh, "reward")[::2], mesh)
    ids = np.array(tokens_of(folder, rows, length), np.int32)
    ones, positions = np.ones((rows, length), np.int32), np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    batch = {"tokens": ids, "positions": positions, "segment_ids": ones, "targets": np.roll(ids, -1, axis=1)}
    batch |= {"loss_weights": (positions < length - 1).astype(np.float32)}
    rule = optimizer.make_optimizer(config.optimizer, 1000, params)
    with jax.set_mesh(mesh):
        state = [loop.init_state(params, rule, mesh)]
        step = loop.make_train_step(sft.make_loss(graph), rule, state[0], 1, frozen)
    judged = Batch([], [], ids, positions, ones)

    def train() -> float:
        with jax.set_mesh(mesh):
            state[0], metrics = step(state[0], batch)
        return float(metrics["loss"])

    return {"lora": train, "score": lambda: float(np.asarray(scorer.logits(judged)).sum())}


def tokens_of(folder: str, rows: int, length: int) -> list[list[int]]:
    """The same random tokens for all."""
    vocabulary = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    return np.random.default_rng(0).integers(0, vocabulary, (rows, length)).tolist()


def work(arguments: argparse.Namespace) -> None:
    """A worker: for each line, a case and its number of steps, the seconds and the last step's number."""
    out, sys.stdout = sys.stdout, sys.stderr
    name, _, remat = arguments.worker.partition(":")
    shape = (arguments.model, arguments.rows, arguments.length)
    cases = torch_worker(*shape) if name == "torch" else our_worker(*shape, remat)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        case, steps = line.split()
        began = time.perf_counter()
        value = [cases[case]() for _ in range(int(steps))][-1]
        print(json.dumps({"seconds": time.perf_counter() - began, "value": value}), file=out, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3, help="timed at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", default="lora,score")
    parser.add_argument("--remat", default="none,full", help="of ours, a worker each")
    parser.add_argument("--threads", default=f"1,{os.cpu_count()}", help="of PyTorch, a worker each")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "OMP_WAIT_POLICY": "PASSIVE"}  # idle workers must not spin
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    workers = {}
    asked = [(f"e2h_jax, remat={remat}", f"ours:{remat}", {}) for remat in arguments.remat.split(",")]
    asked += [(f"torch, {n} threads", "torch", {"OMP_NUM_THREADS": n}) for n in arguments.threads.split(",")]
    for name, worker, more in asked:
        command = [sys.executable, __file__, *sys.argv[1:], f"--worker={worker}"]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        workers[name] = subprocess.Popen(command, text=True, env=environment | more, **streams)
        assert workers[name].stdout.readline() == "ready\n", f"{name} did not start"
    tokens = arguments.steps * arguments.rows * arguments.length
    print("| case | system | tokens/s | first of ours / it |\n|---|---|---|---|")
    for case in arguments.cases.split(","):
        rates: dict[str, list[float]] = {name: [] for name in workers}
        for repeat in range(arguments.repeats + 1):  # the first compiles
            for name, worker in workers.items():
                print(case, arguments.steps if repeat else 1, file=worker.stdin, flush=True)
                result = json.loads(worker.stdout.readline())
                if repeat:
                    rates[name].append(tokens / result["seconds"])
                elif case == "lora":  # B is 0: the loss is the base model's
                    print(f"{name}: loss {result['value']:.5f}", file=sys.stderr)
        first = next(iter(rates.values()))
        for name, found in rates.items():
            ratio = statistics.median(ours / its for ours, its in zip(first, found, strict=True))
            print(f"| {case} | {name} | {statistics.median(found):,.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
