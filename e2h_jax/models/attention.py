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
from e2h_jax.models.projection import einsum

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
    q = q_BxLxHxh.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    scores = einsum("blkgh,bskh->bkgls", q, k_BxSxKxh, jnp.float32) * head_dim**-0.5
    scores = jnp.where(mask_BxLxS[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BxSxKxh.dtype)
    out = einsum("bkgls,bskh->blkgh", weights, v_BxSxKxh)
    return out.reshape(batch, length, heads, head_dim)


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
