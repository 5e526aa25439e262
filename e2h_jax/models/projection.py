"""Where a weight meets an activation: every matrix product of the network with a parameter goes through `project`.

A weight `q` of a module may have company, attributes of the same module: `q_bias`; `q_scale`, when `q` itself is int8
(`quantize.py`); `q_lora_a` and `q_lora_b`, a low-rank adapter (`lora.py`).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from e2h_jax.parallel.rules import constrain

# The product of each weight with an activation; weights without the axis of layers. The axes that only the weight and the
# activation have are summed over: its inputs. The others are its outputs. einsum sums in alphabetical order, so "o" has letters
# (h heads, i head size) in the order of storage: nothing needs to be transposed.
PRODUCTS = {
    "q": "...d,dkh->...kh",
    "k": "...d,dkh->...kh",
    "v": "...d,dkh->...kh",
    "o": "...hi,hid->...d",
    "gate": "...d,df->...f",
    "up": "...d,df->...f",
    "down": "...f,fd->...d",
    "lm_head": "...d,dv->...v",
    "score_hidden": "...d,df->...f",
    "embedding": "...d,vd->...v",  # as the language-model head of a model with tied embeddings
}

# Weights [D, K, h] that decoding on a TPU keeps as [K x h, D], and [D, F] as [F, D]: its products read them so, and copied them
# in every dispatch. All of a layer's are turned or none.
TURNED = ("q", "k", "v", "gate", "up")


def einsum(formula: str, x: jax.Array, y: jax.Array, out_dtype=None) -> jax.Array:
    """`jnp.einsum`, returned in `out_dtype` if given. A product of float32 operands is float32's on every device.

    TPUs compute it in bfloat16 otherwise, and GPUs in TensorFloat-32.
    """
    exact = jax.lax.Precision.HIGHEST if x.dtype == y.dtype == jnp.float32 else None
    return jnp.einsum(formula, x, y, precision=exact, preferred_element_type=out_dtype)


def project(module: nnx.Module, name: str, x: jax.Array, out_dtype=None) -> jax.Array:
    """The product of `x` with a weight of `module` (see `PRODUCTS`), its adapter and its bias added.

    Computed in x's dtype (parameters are cast to it), returned in `out_dtype` if given.
    """
    weight, bias, scale = (getattr(module, name + end, None) for end in ("", "_bias", "_scale"))
    if scale is None:
        y = _product(module, name, x, weight[...].astype(x.dtype), out_dtype)
    else:  # a scale for each output: it comes after the sum, which int8 weights enter exactly
        y = _product(module, name, x, weight[...].astype(x.dtype), jnp.float32)
        y = (y * scale[...]).astype(out_dtype or x.dtype)
    if hasattr(module, name + "_lora_a"):
        y += _low_rank(module, name, x).astype(y.dtype)
    return y if bias is None else y + bias[...].astype(y.dtype)


def _product(module: nnx.Module, name: str, x: jax.Array, weight: jax.Array, out_dtype) -> jax.Array:
    query = getattr(module, "q", None)  # tells of all: [D, F] and [F, D] do not differ in themselves
    if name in TURNED and query is not None and query[...].ndim == 2:
        y = einsum("...d,ed->...e", x, weight, out_dtype)
        return y.reshape(*y.shape[:-1], -1, module.config.head_dim) if name in ("q", "k", "v") else y
    return einsum(PRODUCTS[name], x, weight, out_dtype)


def _low_rank(module: nnx.Module, name: str, x: jax.Array) -> jax.Array:
    """x · A · B · alpha / rank."""
    activation, weight, result = PRODUCTS[name].replace("->", ",").split(",")
    inputs = activation.removeprefix("...")
    outputs = result.removeprefix("...")
    a, b = (getattr(module, f"{name}_lora_{part}")[...].astype(x.dtype) for part in "ab")
    inner = einsum(f"...{inputs},{inputs}r->...r", x, a)
    return einsum(f"...r,r{outputs}->...{outputs}", inner, b) * module.lora_scale


def look_up(module: nnx.Module, name: str, ids: jax.Array, dtype: str) -> jax.Array:
    """Embeddings [B, L, D] of ids [B, L], in `dtype`.

    The table stays cut along its width, as it lies: each device looks up its part of the width for more rows than its own, and
    the parts are then exchanged. Left to itself, the compiler would bring the result to its rows by way of a full copy.
    """
    ids = constrain(ids, "look_up", "length")
    rows, scale = getattr(module, name)[...][ids], getattr(module, name + "_scale", None)
    rows = constrain(rows, "look_up", "length", "embed")
    if scale is not None:
        rows = rows * scale[...][ids][..., None]
    # Cast after the look-up: its gradient sums over a token's occurrences, in float32 that way.
    return rows.astype(dtype)


def dense(module: nnx.Module, name: str) -> jax.Array:
    """The weight as a float array, without adapter: in float32 if it is int8, else as it is kept."""
    weight, scale = getattr(module, name)[...], getattr(module, name + "_scale", None)
    return weight if scale is None else weight * jnp.expand_dims(scale[...], input_axes(name))


def input_axes(name: str) -> tuple[int, ...]:
    """The axes of a weight that its product sums over, without the axis of layers in front."""
    _, weight, result = PRODUCTS[name].replace("->", ",").split(",")
    return tuple(axis for axis, letter in enumerate(weight) if letter not in result)


def stacked_input_axes(name: str, param: nnx.Param) -> tuple[int, ...]:
    """The axes of a parameter that its product sums over, the axis of layers in front counted."""
    layers = int(param.get_metadata("axes")[0] == "layers")
    return tuple(axis + layers for axis in input_axes(name))
