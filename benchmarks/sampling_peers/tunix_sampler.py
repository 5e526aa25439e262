"""tunix's `Sampler`, in its own environment; a prompt is repeated N times, as its rollouts do."""

import json
from pathlib import Path

import jax
import numpy as np
from protocol import cut, serve
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3 import model as llama3
from tunix.models.llama3 import params as llama3_params


class Identity:
    """A tokenizer whose texts are lists of ids."""

    def encode(self, text, **_):
        return [int(token) for token in text.split()]

    def decode(self, ids, **_):
        return ""

    def bos_id(self):
        return 0

    def eos_id(self):
        return -1

    def pad_id(self):
        return 0


def prepare(folder):
    shape = json.loads((Path(folder) / "config.json").read_text())
    config = llama3.ModelConfig(
        num_layers=shape["num_hidden_layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["hidden_size"],
        hidden_dim=shape["intermediate_size"],
        num_heads=shape["num_attention_heads"],
        head_dim=shape["head_dim"],
        num_kv_heads=shape["num_key_value_heads"],
        rope_theta=10_000,
        norm_eps=shape["rms_norm_eps"],
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with mesh:
        model = llama3_params.create_model_from_safe_tensors(folder, config, mesh, dtype=jax.numpy.float32)
    samplers = {}

    def sample(prompts, n, new, ends, seed, choice):
        size = len(prompts[0]) + new + 1
        if size not in samplers:
            cache = CacheConfig(size, config.num_layers, config.num_kv_heads, config.head_dim)
            samplers[size] = Sampler(model, Identity(), cache)
        temperature = choice["temperature"]
        choice = {"temperature": temperature} if temperature == 0 else {"temperature": temperature, "top_p": 1.0}
        texts = [" ".join(map(str, prompt)) for prompt in prompts for _ in range(n)]
        with mesh:
            out = samplers[size](
                texts, new, len(prompts[0]), eos_tokens=ends or [-1], seed=seed, pad_output=False, **choice
            )
        rows = [np.asarray(row).tolist() for row in out.tokens]
        # What comes back ends before the end token; it was computed and counts.
        rows = [cut([*row, *ends[:1]], set(ends)) if len(row) < new else row for row in rows]
        return rows, {"computed": len(rows) * max(map(len, rows))}

    return sample


serve(prepare)
