"""This project's sampler, on the same folder of safetensors."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from protocol import serve

from e2h_jax.models import convert, store
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.sampling.choose import Settings
from e2h_jax.sampling.grouping import grouping
from e2h_jax.sampling.kernel import Kernel
from e2h_jax.sampling.roofline import Roofline
from e2h_jax.sampling.scheduler import Request, draw

GROUPS = 4  # at most, of prompts at a time: as many rows as the peers' batches have


def prepare(folder):
    converted = Path(folder).with_name(Path(folder).name + "-ours")
    if not (converted / "model").exists():
        convert.run(ConfigDict(convert.defaults().to_dict() | {"source": str(folder)}), converted)
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    graph, config, params = store.load(converted / "model", mesh, "policy", dtype="float32")
    kernels = {}

    def sample(prompts, n, new, ends, seed, choice):
        # Equal lengths: the peers' batch, divided as the stage does it. Skewed: slots that are filled again and again, 16 a
        # prompt for N = 64.
        groups, rows = (min(GROUPS, len(prompts)), -(-n // 4)) if ends else grouping(len(prompts) * n, 1, len(prompts), n)
        key = (groups, rows, new, tuple(ends), *choice.values())
        if key not in kernels:
            settings = Settings(new, tuple(ends) or (config.vocab_size,), **choice)
            kernel = Kernel(
                graph, config, params, mesh, groups=groups, rows=rows, seed=0, settings=settings, prompt_bucket=64
            )
            kernel.foresee(map(len, prompts))
            kernel.compile()
            kernels[key] = kernel, Roofline(kernel)
        kernel, roofline = kernels[key]
        requests = [Request(f"{seed}/{i}", np.array(p, np.int32), range(n)) for i, p in enumerate(prompts)]
        rounds = list(draw(kernel, requests))
        facts = {
            "computed": sum(round_.steps for round_ in rounds) * groups * rows,
            "ideal": sum(map(roofline.seconds, rounds)),
            "decode": sum(round_.decode_seconds for round_ in rounds),
            "gflops": roofline.peaks.flops / 1e9,
            "gbytes": roofline.peaks.bandwidth / 1e9,
        }
        order = lambda d: (int(d.problem_id.split("/")[1]), d.sample)  # noqa: E731
        drawn = sorted((d for round_ in rounds for d in round_.drawn), key=order)
        return [d.tokens.tolist() for d in drawn], facts

    return sample


serve(prepare)
