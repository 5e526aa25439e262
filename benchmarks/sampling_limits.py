"""What the sampler promises, measured: shared prompts, slots, reproducibility.

    python benchmarks/sampling_limits.py

1. A prompt of 1,024 tokens, N = 64: the whole against its decoding steps and one prefill, and the memory of the prompt's cache.
2. Skewed lengths (geometric, mean 128, 512 at most), N = 64 over 16 slots a prompt: share of computed tokens that were kept.
3. The same samples drawn with other numbers of rows: how many differ, and where (two tokens that tie within rounding).
"""

import time

import jax
import numpy as np

from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.sampling.choose import Settings
from e2h_jax.sampling.kernel import Kernel
from e2h_jax.sampling.scheduler import Request, draw

MESH = make_mesh((1, 1, 1), jax.devices()[:1])
CONFIG = LlamaConfig(512, width=256, layers=4, heads=4, kv_heads=4, head_dim=64, mlp_width=1024, max_length=4096)
GRAPH, PARAMS = store.create("policy", CONFIG, MESH, seed=0)
RNG = np.random.default_rng(0)


def kernel(groups: int, rows: int, new: int, ends=(512,), bucket: int = 128, prompts=(128,)) -> Kernel:
    settings = Settings(new, tuple(ends))
    made = Kernel(GRAPH, CONFIG, PARAMS, MESH, groups=groups, rows=rows, seed=0, settings=settings, prompt_bucket=bucket)
    made.foresee(prompts)
    made.compile()
    list(draw(made, [Request("warm", np.ones(max(prompts), np.int32), range(rows))]))
    return made


def requests(count: int, length: int, n: int) -> list[Request]:
    return [Request(str(i), RNG.integers(0, 512, length).astype(np.int32), range(n)) for i in range(count)]


def long_prompt() -> None:
    for n in (1, 16, 64):
        made, request = kernel(1, n, 256, bucket=1024, prompts=(1024,)), requests(1, 1024, n)
        began = time.perf_counter()
        rounds = list(draw(made, request))
        seconds = time.perf_counter() - began
        parts = sum(r.decode_seconds for r in rounds), sum(r.prefill_seconds for r in rounds)
        prompt = made.programs["prefill", 1024].memory_analysis().output_size_in_bytes
        print(
            f"prompt of 1,024 tokens, N = {n:2}: {seconds:.2f} s = {seconds / sum(parts):.3f} x (decoding {parts[0]:.2f} s + "
            f"one prefill {parts[1]:.2f} s); cache of a place {prompt / 1e6:.1f} MB"
        )


def skewed() -> None:
    ends = RNG.choice(512, 4, replace=False).tolist()
    for groups, count in ((1, 8), (4, 16)):
        rounds = list(draw(kernel(groups, 16, 512, ends), requests(count, 128, 64)))
        lengths = [len(drawn.tokens) for r in rounds for drawn in r.drawn]
        kept, computed = sum(lengths), sum(r.steps for r in rounds) * groups * 16
        waves = np.array(lengths).reshape(-1, 64)
        padded = 64 * waves.max(1).sum()
        print(
            f"{count} prompts x 64 samples over {groups} x 16 slots: lengths {np.mean(lengths):.0f} on average, "
            f"{max(lengths)} at most; kept {kept / computed:.3f} of the computed tokens (batches of 64 padded to the longest: "
            f"{kept / padded:.3f})"
        )


def other_shapes() -> None:
    asked = requests(64, 128, 64)
    reference = None
    for groups, rows in ((4, 16), (16, 16), (2, 8), (8, 64), (32, 4)):
        drawn = [d for r in draw(kernel(groups, rows, 128), asked) for d in r.drawn]
        found = {(d.problem_id, d.sample): d.tokens for d in drawn}
        reference = reference or found
        different = [key for key, tokens in found.items() if not np.array_equal(tokens, reference[key])]
        tokens = sum(map(len, found.values()))
        print(f"{groups:2} groups x {rows:2} rows: {len(different)} of {len(found)} samples ({tokens:,} tokens) differ")


if __name__ == "__main__":
    long_prompt()
    skewed()
    other_shapes()
