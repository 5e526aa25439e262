"""LoRA (Hu et al. 2021, arXiv 2106.09685): a frozen model learns through low-rank factors beside its weights.

Of a weight W the product becomes x·W + x·A·B · alpha / rank (`projection.project`); A starts random, B at zero: training starts
from the base. Only the factors (and what a reward model has beyond its trunk) are trained: gradients, moments and
checkpoints are of their size, and the base may be bfloat16 or int8. `remove` gives the base again, of the same arrays: the
reference policy of DPO and PPO.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from e2h_jax.errors import UserError, nearest
from e2h_jax.models import quantize, store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.models.projection import stacked_input_axes
from e2h_jax.models.tensors import TABLE
from e2h_jax.parallel.rules import state_shardings
from e2h_jax.parallel.shapes import is_abstract, made

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
FACTORS = ("_lora_a", "_lora_b")


def defaults() -> ml_collections.ConfigDict:
    """Fields of `config.lora`."""
    config = ml_collections.ConfigDict()
    config.rank = 0  # of the factors; 0 = off: every weight is trained
    config.alpha = 32.0  # the product of the factors counts alpha / rank
    config.targets = TARGETS  # the weights of every layer that get factors
    config.quantize = ""  # int8 = the frozen weights in int8 (docs/memory.md); "" = in the model's compute dtype
    config.merge = True  # write model/ with the factors added to its weights; False = WORKDIR/adapter only
    return config


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for a training stage's `config.lora` or `config.remat` that makes no sense."""
    lora = config.lora
    if config.remat and config.remat not in store.REMATS:
        raise UserError(f'config.remat={config.remat!r} must be "" (the model\'s own) or one of {", ".join(store.REMATS)}')
    if lora.rank < 0:
        raise UserError(f"config.lora.rank={lora.rank} must be at least 0 (0 = off)")
    if lora.quantize not in quantize.SCHEMES:
        raise UserError(f'config.lora.quantize={lora.quantize!r} must be "" (off) or int8')
    if lora.rank == 0:
        if lora.quantize:
            raise UserError(f"config.lora.quantize={lora.quantize}: int8 weights cannot be trained; set config.lora.rank too")
        return
    if not config.init:
        raise UserError("config.lora.rank is set, but config.init is empty; name the model/ folder that is to be adapted")
    if lora.alpha <= 0:
        raise UserError(f"config.lora.alpha={lora.alpha} must be above 0")
    if not lora.targets:
        raise UserError(f"config.lora.targets is empty; choose from {', '.join(TARGETS)}")
    for name in lora.targets:
        if name not in TARGETS:
            raise UserError(f"config.lora.targets: {name!r} is unknown{nearest(name, TARGETS)}; there are {', '.join(TARGETS)}")


def load(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    kind: str,
    folder: Path | store.Described | None = None,
    dtype: str = "",
) -> tuple[nnx.GraphDef, LlamaConfig, nnx.State, nnx.State | None]:
    """Loads `folder` (default: `config.init`) for training as `config.lora` and `config.remat` say.

    `dtype`: what it computes in while it is trained; "" = its own, which its shape names whatever this says.

    Returns:
      the graph, its shape, the parameters to train, and the frozen ones (None without LoRA); `nnx.merge_state` makes one
      state of both.
    """
    folder, lora = folder or Path(config.init), config.lora
    own = store.load_config(folder)[1].dtype
    changes = {"dtype": dtype or own} | ({"remat": config.remat} if config.remat else {})
    kept = {"param_dtype": dtype or own, "quantize": lora.quantize} if lora.rank else {}
    graph, model_config, params = store.load(folder, mesh, kind, **kept, **changes)
    model_config = dataclasses.replace(model_config, dtype=own)
    if not lora.rank:
        return graph, model_config, params, None
    graph, params = add(graph, params, mesh, lora.targets, lora.rank, lora.alpha, config.seed)
    return graph, model_config, *split(params)


def add(
    graph: nnx.GraphDef, params: nnx.State, mesh: Mesh, targets: tuple[str, ...], rank: int, alpha: float, seed: int
) -> tuple[nnx.GraphDef, nnx.State]:
    """The model with fresh factors, float32: A uniform within ± inputs^-1/2 (as `peft` does), B zero."""
    model = nnx.merge(graph, params)
    blocks = getattr(model, "trunk", model).blocks
    weights = {name: getattr(blocks, name) for name in TARGETS if name in targets}

    def init() -> nnx.State:
        made = {}
        for number, (name, param) in enumerate(weights.items()):
            shape, axes, last = param.shape, param.get_metadata("axes"), stacked_input_axes(name, param)[-1] + 1
            bound = np.prod(shape[1:last]) ** -0.5
            key = jax.random.fold_in(jax.random.key(seed), number)
            a = jax.random.uniform(key, (*shape[:last], rank), jnp.float32, -bound, bound)
            b = jnp.zeros((shape[0], rank, *shape[last:]), jnp.float32)
            made[name + "_lora_a"] = nnx.LoRAParam(a, axes=(*axes[:last], "rank"))
            made[name + "_lora_b"] = nnx.LoRAParam(b, axes=(axes[0], "rank", *axes[last:]))
        return nnx.State(made)

    factors = made(init, state_shardings(mesh, jax.eval_shape(init)), abstract=is_abstract(params))
    for name, param in factors.items():
        setattr(blocks, name, param)
    blocks.lora_scale = alpha / rank
    return nnx.split(model)


def remove(graph: nnx.GraphDef, params: nnx.State) -> tuple[nnx.GraphDef, nnx.State]:
    """The model with its adapter off: the base, of the same arrays (not copied)."""
    model = nnx.merge(graph, params)
    blocks = getattr(model, "trunk", model).blocks
    for name in TARGETS:
        for end in FACTORS:
            if hasattr(blocks, name + end):
                delattr(blocks, name + end)
    del blocks.lora_scale
    return nnx.split(model)


def split(params: nnx.State) -> tuple[nnx.State, nnx.State]:
    """(what LoRA trains, what it leaves frozen): the factors and what is outside of a reward model's trunk; the rest."""

    def trained(path: tuple, _) -> bool:
        return path[-1].endswith(FACTORS) or "trunk" in params and path[0] != "trunk"

    return nnx.split_state(params, trained, ...)


def merge(base: nnx.State, trained: nnx.State, scale: float) -> nnx.State:
    """The base's parameters with the factors' products added, and in place of the others what was trained."""
    found, factors = dict(nnx.to_flat_state(base)), dict(nnx.to_flat_state(trained))
    for path, param in factors.items():
        if not path[-1].endswith(FACTORS):
            found[path] = param
        elif path[-1].endswith("_lora_a"):
            name = path[-1].removesuffix("_lora_a")
            weight, b = found[*path[:-1], name], factors[*path[:-1], name + "_lora_b"][...]
            layers, rank = b.shape[:2]
            change = jnp.matmul(param[...].reshape(layers, -1, rank), b.reshape(layers, rank, -1), precision="highest")
            found[*path[:-1], name] = weight.replace(weight[...] + scale * change.reshape(weight.shape))
    return nnx.from_flat_state(found)


def save(
    workdir: Path,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    kind: str,
    model_config: LlamaConfig,
    params: nnx.State,
    tokenizer,
    reads: dict | None = None,
) -> None:
    """Writes what was trained: `workdir/model`; with LoRA `workdir/adapter`, and `workdir/model` merged in float32.

    `reads`: see `store.load_reads`.
    """
    lora = config.lora
    if lora.rank:
        with jax.set_mesh(mesh):
            write_peft(workdir / "adapter", params, lora.alpha, config.init)
        if not lora.merge:
            return
        base = store.load(Path(config.init), mesh, kind)[2]
        shardings = jax.tree.map(lambda leaf: leaf.sharding, base)
        params = jax.jit(merge, static_argnums=2, donate_argnums=0, out_shardings=shardings)(
            base, params, lora.alpha / lora.rank
        )
    store.save(workdir / "model", kind, model_config, params, tokenizer, reads)


def write_peft(folder: Path, trained: nnx.State, alpha: float, base: str) -> None:
    """Writes the adapter for the `peft` library, whole or not at all, in float32: adapter_config.json and safetensors.

    It fits the base as `e2h convert` exports it: `PeftModel.from_pretrained(base, folder)`.
    """
    replicated = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
    whole = jax.jit(lambda x: x, out_shardings=replicated)(trained)
    if jax.process_index() > 0:
        return
    values = {path[-1]: np.asarray(param[...]) for path, param in nnx.to_flat_state(whole)}
    tensors, targets, rank = {}, [], 0
    for name in TARGETS:
        if name + "_lora_a" not in values:
            continue
        a, b = (values[name + end] for end in FACTORS)
        layers, rank = b.shape[:2]
        place = TABLE[f"blocks.{name}"][0].removesuffix(".weight")
        targets.append(place.split(".")[-1])
        for layer in range(layers):
            where = f"base_model.model.{place.format(layer)}"
            tensors[f"{where}.lora_A.weight"] = np.ascontiguousarray(a[layer].reshape(-1, rank).T)
            tensors[f"{where}.lora_B.weight"] = np.ascontiguousarray(b[layer].reshape(rank, -1).T)
    for name, shape in (("score_head", (1, -1)), ("score_bias", (1,))):
        if name in values:
            tensors[f"base_model.model.{TABLE[name][0]}"] = values[name].reshape(shape)
    reward = "score_head" in values
    text = {
        "peft_type": "LORA",
        "task_type": "TOKEN_CLS" if reward else "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "modules_to_save": ["score"] if reward else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(tensors, partial / "adapter_model.safetensors", {"format": "pt"})
    (partial / "adapter_config.json").write_text(json.dumps(text, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted after it
    partial.rename(folder)
