"""Attention, the one thing in which training, scoring, prefill and decoding differ.

The network (`llama.py`) is handed a function `attend(q, k, v, cache, window) -> (out, kept)`:

  q [B, L, H, h], k and v [B, L, K, h], out [B, L, H, h]; H = K x G query heads share K key/value heads;
  `cache` is the layer's slice of what was cached before (None in training), only read;
  `window` is how many tokens the layer's queries see, counted back from themselves (None = all; an int, or a traced scalar
  where layers differ);
  `kept` is what the caller wants back from the layer (None, or its new keys and values); the network stacks it over layers.

Scores and softmax are float32; masked scores are a large negative number, never -inf (a fully masked padding row stays finite).
On TPU and GPU whole rows go to a kernel that never makes all scores, where one suits them (`flash.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from e2h_jax.models import flash

MASKED = -1e30


def packed_causal(segment_ids_BxL: jax.Array) -> Callable:
    """Causal attention within segments of packed rows; segment 0 is padding. Keeps nothing."""
    length = segment_ids_BxL.shape[1]
    causal_LxL = jnp.tril(jnp.ones((length, length), bool))
    mask_BxLxL = causal_LxL & (segment_ids_BxL[:, :, None] == segment_ids_BxL[:, None, :])

    def attend(q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, cache, window):
        if kernel := flash.kernel_for(q_BxLxHxh, window):
            return kernel(q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, segment_ids_BxL, window), None
        return _dense(q_BxLxHxh, k_BxLxKxh, v_BxLxKxh, _within(window, mask_BxLxL)), None

    return attend


def _within(window, mask_BxLxL: jax.Array) -> jax.Array:
    """Takes from a causal mask what lies further back than the window."""
    length = mask_BxLxL.shape[-1]
    if window is None or isinstance(window, int) and window >= length:
        return mask_BxLxL
    columns = jnp.arange(length)
    return mask_BxLxL & (columns > columns[:, None] - window)


def _dense(q_BxLxHxh, k_BxSxKxh, v_BxSxKxh, mask_BxLxS):
    batch, length, heads, head_dim = q_BxLxHxh.shape
    kv_heads = k_BxSxKxh.shape[2]
    group = heads // kv_heads
    q = q_BxLxHxh.reshape(batch, length, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    k, v = (x.swapaxes(1, 2) for x in (k_BxSxKxh, v_BxSxKxh))
    scores = _scores(q.reshape(batch, kv_heads, group * length, head_dim), k) * head_dim**-0.5
    masked = jnp.where(mask_BxLxS[:, None, None], scores.reshape(batch, kv_heads, group, length, -1), MASKED)
    weights = jax.nn.softmax(masked, axis=-1).astype(v.dtype)
    out = _mixed(weights.reshape(scores.shape), v).reshape(batch, kv_heads, group, length, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


# The two products of attention and their gradients, by head (R = G x L rows of queries): what has the size of all scores is
# only ever an operand that is read as it lies. Differentiation would write the gradients to keys and values so that a CPU
# copies it turned around, in every layer.


@jax.custom_vjp
def _scores(q_BxKxRxh: jax.Array, k_BxKxSxh: jax.Array) -> jax.Array:
    """Float32 [B, K, R, S], unscaled."""
    return _product(q_BxKxRxh, k_BxKxSxh, 3, 3, jnp.float32)


@jax.custom_vjp
def _mixed(weights_BxKxRxS: jax.Array, v_BxKxSxh: jax.Array) -> jax.Array:
    """[B, K, R, h]."""
    return _product(weights_BxKxRxS, v_BxKxSxh, 3, 2)


def _scores_backward(operands, change_BxKxRxS):
    q, k = operands
    of_q = _product(change_BxKxRxS, k.astype(jnp.float32), 3, 2)
    of_k = _product(q.astype(jnp.float32), change_BxKxRxS, 2, 2).swapaxes(2, 3)
    return of_q.astype(q.dtype), of_k.astype(k.dtype)


def _mixed_backward(operands, change_BxKxRxh):
    weights, v = operands
    of_v = _product(change_BxKxRxh, weights, 2, 2, jnp.float32).swapaxes(2, 3)
    return _product(change_BxKxRxh, v, 3, 3), of_v.astype(v.dtype)


def _product(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int, out_dtype=None) -> jax.Array:
    """Summed over these axes, batched over the first two."""
    exact = jax.lax.Precision.HIGHEST if x.dtype == y.dtype == jnp.float32 else None
    axes = ((x_axis,), (y_axis,)), ((0, 1), (0, 1))
    return jax.lax.dot_general(x, y, axes, precision=exact, preferred_element_type=out_dtype)


_scores.defvjp(lambda q, k: (_scores(q, k), (q, k)), _scores_backward)
_mixed.defvjp(lambda weights, v: (_mixed(weights, v), (weights, v)), _mixed_backward)


class KeyValues(NamedTuple):
    """Cached keys and values [..., K, S, h], see `cached_attention.py`."""

    k: jax.Array
    v: jax.Array


def prefill(lengths_P: jax.Array) -> Callable:
    """Causal attention over right-padded prompts [P, S]; keeps their KeyValues. A prompt's result depends on it and S alone."""

    def attend(q_PxSxHxh, k_PxSxKxh, v_PxSxKxh, cache, window):
        segment_ids_PxS = (jnp.arange(q_PxSxHxh.shape[1]) < lengths_P[:, None]).astype(jnp.int32)
        out, _ = packed_causal(segment_ids_PxS)(q_PxSxHxh, k_PxSxKxh, v_PxSxKxh, cache, window)
        return out, KeyValues(k_PxSxKxh.swapaxes(1, 2), v_PxSxKxh.swapaxes(1, 2))

    return attend
