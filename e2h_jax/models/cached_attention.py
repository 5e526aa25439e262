"""Attention of decoding: one new token per row, over keys and values that were stored before.

Shapes: P groups of rows, N rows of each; H = K x G query heads share K key/value heads of size h; c columns of a chunk.

What a row sees lies in pieces, and nothing is ever moved between them or joined:

  prefix   the prompts, once for all rows that sample them. A group has two places, so that rows may begin the next prompt while
           others still finish the one before. A place is a list of chunks [P, K, c, h] of doubling size.
  suffix   what the rows have generated, by age (the place of a token in its solution): chunks [P, K, N, c, h], some of one size
           and then of doubling size, of which only as many exist, and are read, as the oldest row needs.
  recent   the last few tokens [P, K, N, c, h], until they are copied to the suffix. All rows write the same column of it, so
           that the write is one slice, in place.

The pieces share one softmax (weights are merged by their common maximum, as in flash decoding). A piece in which a row sees
nothing adds exact zeros to it: its result does not depend, bit for bit, on how many pieces there are or who else is there.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from e2h_jax.models.attention import MASKED, KeyValues
from e2h_jax.models.projection import einsum


class LayerCache(NamedTuple):
    """What one layer has stored."""

    prefix: Sequence[Sequence[KeyValues]]  # by place, then chunk
    suffix: Sequence[KeyValues]
    recent: KeyValues


def chunk_sizes(first: int, length: int, equal: int = 2) -> list[int]:
    """Sizes of the chunks that hold `length` columns: `equal` of the first size, then each doubles what there is."""
    sizes = [first]
    while sum(sizes) < length:
        sizes.append(first if len(sizes) < equal else sum(sizes))
    return sizes


def decode(lengths_2xP: jax.Array, place_PxN: jax.Array, age_PxN: jax.Array, step: jax.Array) -> Callable:
    """Attention of P x N rows of length 1; `cache` is a LayerCache, of which `recent` is updated and kept.

    Args:
      lengths_2xP: prompt lengths of both places.
      place_PxN: the place (0 or 1) of each row's prompt.
      age_PxN: tokens of each row in the suffix; `step` more are in `recent`, before the new one.
    """
    own_length_PxN = jnp.where(place_PxN == 0, lengths_2xP[0][:, None], lengths_2xP[1][:, None])
    position_PxN = own_length_PxN + age_PxN + step

    def visible(columns, seen_PxN, offset_PxN, window):
        """bool [P, 1, N, 1, c]: columns below `seen`, and inside the window when columns start at position `offset`."""
        mask = columns < seen_PxN[..., None]
        if window is not None:
            mask &= columns + offset_PxN[..., None] > position_PxN[..., None] - window
        return mask[:, None, :, None, :]

    def attend(q_Bx1xHxh, k_Bx1xKxh, v_Bx1xKxh, cache: LayerCache, window):
        groups, kv_heads, rows, _, head_dim = cache.recent.k.shape
        split = lambda x: x.reshape(groups, rows, kv_heads, -1, head_dim).swapaxes(1, 2)  # noqa: E731
        q_PxKxNxGxh = split(q_Bx1xHxh)
        recent = KeyValues(
            *(
                jax.lax.dynamic_update_slice_in_dim(old, split(new), step, axis=3)
                for old, new in zip(cache.recent, (k_Bx1xKxh, v_Bx1xKxh), strict=True)
            )
        )
        # (axes, keys and values, mask). Axes: a P, b K, c N, d G, s columns, t h: einsum orders batch axes alphabetically, and
        # in the order of storage nothing is transposed.
        pieces = []
        for place, chunks in enumerate(cache.prefix):
            seen, start = jnp.where(place_PxN == place, lengths_2xP[place][:, None], 0), 0
            for chunk in chunks:
                columns = start + jnp.arange(chunk.k.shape[-2])
                pieces.append(("abst", chunk, visible(columns, seen, jnp.zeros_like(seen), window)))
                start += len(columns)
        start = 0
        for chunk in cache.suffix:
            columns = start + jnp.arange(chunk.k.shape[-2])
            pieces.append(("abcst", chunk, visible(columns, age_PxN, own_length_PxN, window)))
            start += len(columns)
        columns = jnp.arange(recent.k.shape[-2])
        seen = jnp.broadcast_to(step + 1, age_PxN.shape)
        pieces.append(("abcst", recent, visible(columns, seen, own_length_PxN + age_PxN, window)))

        scores = [
            jnp.where(mask, _einsum(f"abcdt,{axes}->abcds", q_PxKxNxGxh, chunk.k) * head_dim**-0.5, MASKED)
            for axes, chunk, mask in pieces
        ]
        top = scores[0].max(-1, keepdims=True)
        for piece in scores[1:]:
            top = jnp.maximum(top, piece.max(-1, keepdims=True))
        total, out = 0.0, 0.0
        for (axes, chunk, _), piece in zip(pieces, scores, strict=True):
            weights = jnp.exp(piece - top)
            total += weights.sum(-1, keepdims=True)
            out += _einsum(f"abcds,{axes}->abcdt", weights.astype(chunk.v.dtype), chunk.v)
        out = (out / total).astype(q_Bx1xHxh.dtype).swapaxes(1, 2)
        return out.reshape(q_Bx1xHxh.shape), recent

    return attend


def settle(suffix: Sequence[KeyValues], recent: KeyValues, age_PxN: jax.Array) -> list[KeyValues]:
    """Copies the `recent` columns of every row to its suffix columns age, age + 1, …; in place under jit.

    Ages are multiples of the number of recent columns; rows beyond the suffix are left out.
    """
    block = recent.k.shape[-2]
    groups, rows = (jnp.broadcast_to(axis, age_PxN.shape) for axis in jnp.indices(age_PxN.shape, sparse=True))
    settled, start = [], 0
    for chunk in suffix:
        size = chunk.k.shape[-2]
        index = jnp.where(age_PxN >= start, (age_PxN - start) // block, size)  # out of bounds: dropped

        def write(old, new, index=index):
            blocks = old.reshape(*old.shape[:3], -1, block, old.shape[-1])
            blocks = blocks.at[groups, :, rows, index].set(new.swapaxes(1, 2), mode="drop", unique_indices=True)
            return blocks.reshape(old.shape)

        settled.append(KeyValues(write(chunk.k, recent.k), write(chunk.v, recent.v)))
        start += size
    return settled


def _einsum(formula: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """einsum with a float32 result. XLA's CPU backend has no such product of bfloat16 operands: they are widened there."""

    def product(x, y):
        return einsum(formula, x, y, jnp.float32)

    def widened(x, y):
        return product(x.astype(jnp.float32), y.astype(jnp.float32))

    # By the platform that is compiled for, which need not be the one that compiles.
    return jax.lax.platform_dependent(x, y, cpu=widened, default=product)
