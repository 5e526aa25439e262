"""Our logits and greedy tokens beside those of transformers and torch, for every family and feature, on 1 and on 8 devices.

    python benchmarks/parity.py

Reads tests/models/fixtures/hub_models.npz (see tests/models/hub_models.py): random models with prompts of 200 tokens, their
logits and greedy continuations of 64 tokens, computed by torch in float32. Each model is imported by `e2h convert`.
"""

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
from absl import logging
from flax import nnx
from safetensors.numpy import save_file

from e2h_jax.models import convert, store
from e2h_jax.models.attention import packed_causal
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.sampling.choose import Settings
from e2h_jax.sampling.kernel import Kernel
from e2h_jax.sampling.scheduler import Request, draw

SCRIPT = Path(__file__).parents[1] / "tests/models/hub_models.py"


def load_script():
    spec = importlib.util.spec_from_file_location("hub_models", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imported(hub_models, name: str, model: dict, folder: Path) -> Path:
    """The model/ folder of one of the models."""
    source = folder / "hub"
    source.mkdir()
    save_file(hub_models.weights(name, model["shapes"]), source / "model.safetensors")
    (source / "config.json").write_text(json.dumps(model["config"] | {"dtype": "float32"}))
    (source / "tokenizer.json").write_text("{}")
    config = convert.defaults().unlock()
    config.source = str(source)
    convert.run(config, folder)
    return folder / "model"


def compare(hub_models, name: str, folder: Path, shape: tuple[int, int, int], arrays) -> tuple[float, bool]:
    """Largest difference of two logits of the prompt, and whether the greedy tokens are the same."""
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(shape))])
    graph, config, params = store.load(folder, mesh, "policy")
    tokens = np.tile(hub_models.prompt(name), (4, 1))

    @jax.jit
    def forward(params, tokens):
        model = nnx.merge(graph, params)
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        return model.logits(model(tokens, positions, packed_causal(np.ones(tokens.shape, np.int32)))[0])

    with jax.set_mesh(mesh):
        logits = np.asarray(forward(params, tokens))[0]
    settings = Settings(hub_models.NEW, (config.vocab_size,), temperature=0.0)
    kernel = Kernel(graph, config, params, mesh, groups=8, rows=1, seed=0, settings=settings, prompt_bucket=208)
    kernel.foresee([hub_models.PROMPT])
    (drawn,) = [sample.tokens for round_ in draw(kernel, [Request("", tokens[0], [0])]) for sample in round_.drawn]
    difference = float(np.abs(logits - arrays[f"{name}/logits"]).max())
    return difference, bool((drawn == arrays[f"{name}/greedy"]).all())


def main() -> None:
    logging.set_verbosity(logging.ERROR)
    hub_models = load_script()
    print(
        "| model | max abs Δlogit, 1 device | greedy | max abs Δlogit, 8 devices | greedy |\n|---|---|---|---|---|", flush=True
    )
    with np.load(hub_models.FIXTURE) as arrays:
        for name in hub_models.MODELS:
            with tempfile.TemporaryDirectory() as folder:
                model = imported(hub_models, name, json.loads(str(arrays[f"{name}/model"])), Path(folder))
                cells = []
                for shape in ((1, 1, 1), (4, 2, 1) if name == "llama_one_kv_head" else (2, 2, 2)):
                    difference, same = compare(hub_models, name, model, shape, arrays)
                    cells += [f"{difference:.1e}", "same" if same else "DIFFERENT"]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
