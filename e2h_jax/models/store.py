"""A model on disk: `model.json` (kind and shape), `params/` (Orbax), and the tokenizer's own files beside them."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from orbax.checkpoint import v1 as ocp

from e2h_jax.errors import UserError
from e2h_jax.models import arrays, hub
from e2h_jax.models import quantize as quantization
from e2h_jax.models.heads import RewardModel
from e2h_jax.models.llama import REMAT_POLICIES, Llama, LlamaConfig
from e2h_jax.models.projection import PRODUCTS, stacked_input_axes
from e2h_jax.models.rotary import RopeScaling
from e2h_jax.parallel.checks import check_model
from e2h_jax.parallel.chosen import begun_with
from e2h_jax.parallel.rules import partition_spec, state_shardings
from e2h_jax.parallel.shapes import placed

KINDS = {"policy": Llama, "reward": RewardModel}
DTYPES = ("float32", "bfloat16")
REMATS = ("none", *REMAT_POLICIES)


class Described(NamedTuple):
    """A model that is only described, as `e2h plan` knows those that are yet to be trained: `load` gives its arrays' shapes."""

    kind: str
    config: LlamaConfig


def create(kind: str, config: LlamaConfig, mesh: Mesh, seed: int) -> tuple[nnx.GraphDef, nnx.State]:
    """A freshly initialised model, each parameter made directly in its sharding."""

    def init():
        return nnx.split(KINDS[kind](config, nnx.Rngs(seed)))[1]

    check_model(mesh, config, "the model")
    graph, shapes = abstract(kind, config)
    return graph, jax.jit(init, out_shardings=state_shardings(mesh, shapes))()


def abstract(kind: str, config: LlamaConfig, quantize: str = "") -> tuple[nnx.GraphDef, nnx.State]:
    """The model without its arrays: shapes and dtypes in their place."""
    model = nnx.eval_shape(lambda: KINDS[kind](config, nnx.Rngs(0)))
    if quantize:
        quantization.describe(model)
    return nnx.split(model)


def save(folder: Path, kind: str, config: LlamaConfig, params: nnx.State, tokenizer, reads: dict | None = None) -> None:
    """Writes the model so that `load` finds it whole or not at all: `model.json` comes last. `reads`: see `load_reads`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        (folder / "model.json").unlink(missing_ok=True)  # an earlier model's: its parameters are about to go
    with arrays.layerwise():
        ocp.save((folder / "params").absolute(), nnx.to_pure_dict(params), overwrite=True)
    if jax.process_index() == 0:
        tokenizer.save_pretrained(folder)
        hub.write_generation(folder, tokenizer)
        save_description(folder, kind, config, reads, getattr(tokenizer, "bos_rule", "tokenizer"))


def save_description(folder: Path, kind: str, config: LlamaConfig, reads: dict | None = None, bos: str = "tokenizer") -> None:
    """Writes `model.json`. `bos`: how prompts begin, see `load_tokenizer`."""
    description = {"kind": kind, "config": dataclasses.asdict(config), "bos": bos}
    text = json.dumps(description | ({"reads": reads} if reads else {}), indent=2)
    temporary = folder / "model.json.tmp"
    temporary.write_text(text + "\n")
    temporary.rename(folder / "model.json")


def load_config(folder: Path | Described) -> tuple[str, LlamaConfig]:
    """Kind ("policy" or "reward") and shape of the model in `folder`; UserError when there is none."""
    if isinstance(folder, Described):
        return folder
    path = Path(folder) / "model.json"
    if not path.exists():
        raise UserError(f"{folder} holds no model (no model.json); give the model/ folder of a finished sft or reward stage")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        kind, fields = description["kind"], description["config"]
        if fields.get("rope_scaling") is not None:
            fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
        config = LlamaConfig(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "it is damaged, or of a newer version of e2h_jax"
        raise UserError(f"{path} does not describe a model ({str(error).splitlines()[0]}); {remedy}") from None
    for part in (config, *filter(None, [config.rope_scaling])):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            allowed = (int, float) if field.type is float else field.type
            if not isinstance(value, allowed) or isinstance(value, bool) and field.type is not bool:
                raise UserError(f"{path}: {field.name} is {value!r}; the file is damaged, convert or train the model again.")
    if kind not in KINDS:
        damaged = "the file is damaged, convert or train the model again."
        raise UserError(f"{path}: kind is {kind!r}, which is neither policy nor reward; {damaged}")
    return kind, config


def check_ids(largest: int | None, config: LlamaConfig, tokenizer: object) -> None:
    """Raises UserError for a tokenizer whose largest id (None = unknown) the model has no embedding of."""
    if largest is not None and largest >= config.vocab_size:
        raise UserError(
            f"{tokenizer}: the tokenizer has ids up to {largest}, but the model has embeddings of {config.vocab_size} ids, "
            f"up to {config.vocab_size - 1}; put the tokenizer there that the model was trained with."
        )


def identity(folder: Path) -> str:
    """A digest that a copy of the folder has too, another model and the same one saved again have not. Reads no weights."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}\n".encode())
        if size < 2**16:  # Orbax's lists of what is where: they hold times and random names
            digest.update(path.read_bytes())
    return digest.hexdigest()


def load_reads(folder: Path) -> dict[str, Any]:
    """{"template", "read_at"}: the text that a model reads, a template or the name of one (`data.templates.recorded_template`),
    and where a reward model's step scores are; {} where nothing is said."""
    return json.loads((Path(folder) / "model.json").read_text()).get("reads", {})


def bos_rule(folder: Path) -> str:
    """How prompts of the model begin, see `load_tokenizer`: "always" with BOS where an earlier version has said nothing."""
    return json.loads((Path(folder) / "model.json").read_text()).get("bos", "always")


def load(
    folder: Path | Described, mesh: Mesh, kind: str, *, param_dtype: str = "float32", quantize: str = "", **changes
) -> tuple[nnx.GraphDef, LlamaConfig, nnx.State]:
    """Loads a model as `kind`, straight into the mesh's shardings.

    Args:
      kind: a policy loaded as "reward" gets a fresh (zero) score head: that is how evaluators start.
      param_dtype: what matrices are kept in, whatever they are stored in. float32 for training; bfloat16 halves the memory of a
        frozen model that computes in bfloat16 anyway. Vectors (norms, biases, score head) are float32 always.
      quantize: "int8" for a frozen model with int8 weights (`quantize.py`): they are read in `param_dtype` one parameter after
        the other, so that the devices never hold more than one of them unquantised.
      changes: replace fields of the config that do not change parameters (dtype, remat, unroll).

    Raises:
      UserError: a reward model is asked to be a policy, a dtype or a quantisation is unknown, or the tokenizer beside the model
        has ids that it does not have.
    """
    stored_kind, config = load_config(folder)
    config = dataclasses.replace(config, **changes)
    for dtype in (config.dtype, param_dtype):
        check(dtype, quantize)
    if stored_kind != kind and kind != "reward":
        raise UserError(f"{folder} holds a {stored_kind} model where a {kind} is needed")
    described = isinstance(folder, Described)
    check_model(mesh, config, "the model" if described else str(folder))
    if described:
        return _describe(kind, config, mesh, param_dtype, quantize)
    check_ids(hub.largest_id(folder), config, folder)
    _, stored = abstract(stored_kind, config)
    target = jax.tree.map(
        lambda param, sharding: param.replace(
            jax.ShapeDtypeStruct(param.shape, param_dtype if _is_matrix(param) else jnp.float32, sharding=sharding.get_value())
        ),
        stored,
        state_shardings(mesh, stored),
        is_leaf=lambda leaf: isinstance(leaf, nnx.Param),
    )
    path = (Path(folder) / "params").absolute()
    pure = _load_quantized(path, target) if quantize else ocp.load(path, nnx.to_pure_dict(target))
    graph, params = abstract(kind, config, quantize)
    if stored_kind == kind:
        nnx.replace_by_pure_dict(params, pure)
        return graph, config, params

    def fresh_head():  # without the trunk, which the compiler then never makes
        state = nnx.split(KINDS[kind](config, nnx.Rngs(0)))[1]
        return nnx.State({name: value for name, value in state.items() if name != "trunk"})

    head = jax.jit(fresh_head, out_shardings=state_shardings(mesh, jax.eval_shape(fresh_head)))()
    nnx.replace_by_pure_dict(params, {"trunk": pure} | nnx.to_pure_dict(head))
    return graph, config, params


def load_frozen(
    folder: Path | Described, mesh: Mesh, kind: str, dtype: str = "", quantize: str = ""
) -> tuple[nnx.GraphDef, LlamaConfig, nnx.State]:
    """Loads a model that is not trained, its matrices in the dtype that it computes in ("" = the model's own)."""
    dtype = dtype or load_config(folder)[1].dtype
    return load(folder, mesh, kind, dtype=dtype, param_dtype=dtype, quantize=quantize)


def compute_dtype(folder: Path | Described, mesh: Mesh) -> str:
    """What a stage has a model compute in unless its config says: its own dtype, and on CPUs float32, their fastest."""
    return "float32" if mesh.devices.flat[0].platform == "cpu" else load_config(folder)[1].dtype


def begun_dtype(workdir: Path, asked: str, folder: Path | Described, mesh: Mesh, resumed: bool) -> str:
    """What the run in `workdir` computes in: `asked`, or by `compute_dtype` where it began, whatever it is resumed on.

    `resumed`: something has come of it already. Where it has kept nothing else, that was in the model's own dtype.
    """
    if asked:
        return asked
    own = load_config(folder)[1].dtype
    return begun_with(workdir, "dtype", lambda: own if resumed else compute_dtype(folder, mesh), own)


def _describe(
    kind: str, config: LlamaConfig, mesh: Mesh, param_dtype: str, quantize: str
) -> tuple[nnx.GraphDef, LlamaConfig, nnx.State]:
    """What `load` returns, with shapes for arrays."""
    graph, params = abstract(kind, config, quantize)
    kept = {  # int8 weights and their scales stay what they are
        path: param
        if param.dtype == jnp.int8 or path[-1].endswith("_scale") or not _is_matrix(param)
        else param.replace(jax.ShapeDtypeStruct(param.shape, param_dtype))
        for path, param in nnx.to_flat_state(params)
    }
    params = nnx.from_flat_state(kept)
    return graph, config, placed(params, state_shardings(mesh, params))


def _load_quantized(path: Path, target: nnx.State) -> dict:
    """The parameters with int8 weights and their scales; `target` says what is read."""
    context, found = ocp.Context(), {}
    context.pytree.loading.partial_load = True
    for keys, param in nnx.to_flat_state(target):
        with context:
            value = ocp.load(path, nnx.traversals.unflatten_mapping({keys: param.get_value()}))
        (value,) = jax.tree.leaves(value)
        if keys[-1] in PRODUCTS:
            inputs = stacked_input_axes(keys[-1], param)
            axes = [axis for i, axis in enumerate(param.get_metadata("axes")) if i not in inputs]
            shardings = value.sharding, NamedSharding(value.sharding.mesh, partition_spec(axes))
            quantized = jax.jit(quantization.quantize, static_argnums=1, out_shardings=shardings)
            value, found[*keys[:-1], f"{keys[-1]}_scale"] = jax.block_until_ready(quantized(value, inputs))
        found[keys] = value
    return nnx.traversals.unflatten_mapping(found)


def _is_matrix(param: nnx.Param) -> bool:
    return "embed" in param.get_metadata("axes")


def check(dtype: str, quantize: str) -> None:
    """Raises UserError for a dtype ("" = not said) or a quantisation that is unknown."""
    if dtype and dtype not in DTYPES:
        raise UserError(f"config.dtype={dtype!r} must be {' or '.join(DTYPES)}")
    quantization.check(quantize)


def count_parameters(params) -> int:
    """Number of scalar parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
