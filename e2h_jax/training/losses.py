"""Losses of next-token prediction and step classification. Everything here is float32.

All losses are weighted *sums*: the training loop divides a batch's weights by their total first, so that a sum is the mean over
the weighted tokens of the whole global batch, also under gradient accumulation.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from e2h_jax.models.projection import einsum

TOKENS_PER_CHUNK = 4096


def cross_entropy(hidden_BxLxD: jax.Array, lm_head_DxV: jax.Array, targets_BxL: jax.Array, weights_BxL: jax.Array):
    """Weighted sum of -log softmax(hidden @ lm_head)[target], without [B, L, V] logits ever existing.

    Chunks of columns are scanned and their logits recomputed in the backward pass, so memory is about TOKENS_PER_CHUNK x V.
    A chunk holds some columns of every row: rows stay on the devices that have them.

    Returns:
      the weighted loss sum, and the weighted sum of correct argmax predictions (both float32 scalars).
    """
    chunks, chunk_loss = _chunks(*targets_BxL.shape), jax.checkpoint(_chunk_loss)
    if chunks == 1:
        return chunk_loss(lm_head_DxV, hidden_BxLxD, targets_BxL, weights_BxL)

    def body(sums, chunk):
        loss, hits = chunk_loss(lm_head_DxV, *chunk)
        return (sums[0] + loss, sums[1] + hits), None

    parts = [_cut(x, chunks) for x in (hidden_BxLxD, targets_BxL, weights_BxL)]
    return jax.lax.scan(body, (jnp.float32(0), jnp.float32(0)), parts)[0]


def _chunk_loss(head_DxV, hidden_BxTxD, targets_BxT, weights_BxT):
    logits = _logits(hidden_BxTxD, head_DxV)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets_BxT)
    hits = (logits.argmax(-1) == targets_BxT).astype(jnp.float32)
    return jnp.sum(losses * weights_BxT), jnp.sum(hits * weights_BxT)


def token_logprobs(hidden_BxLxD: jax.Array, lm_head_DxV: jax.Array, targets_BxL: jax.Array, temperature: float = 1.0):
    """log softmax(hidden @ lm_head / temperature)[target] of every token, and the entropy of that distribution in nats.

    In chunks like `cross_entropy`: no [B, L, V] logits exist, also not in the backward pass. Padding has values like any other
    token: give it weight 0.

    Returns:
      log-probabilities and entropies, both float32 [B, L]; gradients flow through either.
    """
    rows, length = targets_BxL.shape
    chunks, chunk_logprobs = _chunks(rows, length), jax.checkpoint(partial(_chunk_logprobs, temperature=temperature))
    if chunks == 1:
        return chunk_logprobs(lm_head_DxV, hidden_BxLxD, targets_BxL)

    def body(_, chunk):
        return None, chunk_logprobs(lm_head_DxV, *chunk)

    parts = jax.lax.scan(body, None, (_cut(hidden_BxLxD, chunks), _cut(targets_BxL, chunks)))[1]
    return tuple(jnp.moveaxis(part, 0, 1).reshape(rows, -1)[:, :length] for part in parts)


def _chunk_logprobs(head_DxV, hidden_BxTxD, targets_BxT, *, temperature):
    logprobs_BxTxV = jax.nn.log_softmax(_logits(hidden_BxTxD, head_DxV) / temperature)
    entropy_BxT = -jnp.sum(jnp.exp(logprobs_BxTxV) * logprobs_BxTxV, axis=-1)
    return jnp.take_along_axis(logprobs_BxTxV, targets_BxT[..., None], axis=-1)[..., 0], entropy_BxT


def _chunks(rows: int, length: int) -> int:
    return min(length, -(-rows * length // TOKENS_PER_CHUNK))


def _cut(x: jax.Array, chunks: int) -> jax.Array:
    """[B, L, ...] -> [chunks, B, L / chunks, ...], L padded with zeros to a multiple."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % chunks), *[(0, 0)] * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)


def _logits(hidden_BxTxD: jax.Array, head_DxV: jax.Array) -> jax.Array:
    """Float32 logits of a chunk."""
    return einsum("btd,dv->btv", hidden_BxTxD, head_DxV.astype(hidden_BxTxD.dtype), jnp.float32)


def step_classification(logits_BxL: jax.Array, labels_BxL: jax.Array, weights_BxL: jax.Array):
    """Weighted sum of binary cross-entropy with (soft) labels in [0, 1]; weight 0 is not trained on.

    Returns the loss sum, and the weighted sum of right decisions: label and probability both at least one half, or both below.
    """
    losses = optax.losses.sigmoid_binary_cross_entropy(logits_BxL.astype(jnp.float32), labels_BxL)
    hits = ((logits_BxL >= 0) == (labels_BxL >= 0.5)).astype(jnp.float32)
    return jnp.sum(losses * weights_BxL), jnp.sum(hits * weights_BxL)
