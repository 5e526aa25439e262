"""Drawing the next token: temperature, top-k, top-p, min-p and one uniform number per row.

Nothing sorts the vocabulary, but for top-k on a TPU.
"""

import dataclasses

import jax
import jax.numpy as jnp

CDF_BLOCK = 256  # tokens per block of the two-level cumulative sum


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tokens are drawn, and when a row ends."""

    max_new_tokens: int
    end_ids: tuple[int, ...]  # EOS and its like: a row ends when it draws one of them
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # keep the k most likely tokens; 0 = all
    top_p: float = 1.0  # then the smallest set of most likely tokens with this probability; 1 = all
    min_p: float = 0.0  # then tokens at least this likely, relative to the most likely one; 0 = all


def choose(logits: jax.Array, uniform: jax.Array, settings: Settings) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws one token per row.

    Args:
      logits: float32 [..., V].
      uniform: float32 [...] in [0, 1), the row's random number: the token is the inverse of the distribution's CDF there.

    Returns:
      token int32 [...]; its log-probability float32 [...] under softmax(logits), the model's own; and under the distribution it
      was drawn from (tempered and restricted; 0 when greedy).
    """
    if settings.temperature == 0:
        token = logits.argmax(-1).astype(jnp.int32)
        return token, _log_softmax_at(logits, token), jnp.zeros(token.shape, jnp.float32)
    tempered = logits / settings.temperature
    if 0 < settings.top_k < logits.shape[-1]:  # everything else happens among the k candidates, which come sorted
        candidates, ids = jax.lax.top_k(tempered, settings.top_k)
        # Not `candidates[..., :1]`: XLA takes a slice of top_k's result for a sign to sort the whole vocabulary.
        weights = jnp.exp(candidates - tempered.max(-1, keepdims=True))
        if settings.top_p < 1:
            before = jnp.cumsum(weights, axis=-1) - weights
            weights = jnp.where(before < settings.top_p * weights.sum(-1, keepdims=True), weights, 0.0)
    else:
        ids, weights = None, jnp.exp(tempered - tempered.max(-1, keepdims=True))
        if settings.top_p < 1:
            weights = jnp.where(weights >= nucleus_threshold(weights, settings.top_p), weights, 0.0)
    weights = jnp.where(weights >= settings.min_p, weights, 0.0)  # the most likely token's weight is 1
    index = inverse_cdf(weights, uniform)
    drawn_from = jnp.log(_take(weights, index)) - jnp.log(weights.sum(-1))
    token = index if ids is None else _take(ids, index)
    return token, _log_softmax_at(logits, token), drawn_from


def nucleus_threshold(weights: jax.Array, top_p: float) -> jax.Array:
    """The largest weight t [..., 1] such that tokens of weight >= t hold at least `top_p` of the sum; ties at t are kept.

    Found by bisection on the bits of float32, whose order is that of the (non-negative) numbers: 31 sums instead of a sort.
    """
    bits = jax.lax.bitcast_convert_type(weights, jnp.int32)
    wanted = top_p * weights.sum(-1, keepdims=True)

    def halve(i, low):
        middle = low | (1 << (30 - i))
        enough = jnp.where(bits >= middle, weights, 0.0).sum(-1, keepdims=True) >= wanted
        return jnp.where(enough, middle, low)

    low = jax.lax.fori_loop(0, 31, halve, jnp.zeros(wanted.shape, jnp.int32))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


def inverse_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first index int32 [...] at which the running sum of `weights` [..., V] exceeds `uniform` x their sum.

    Two levels (blocks, then one block's entries) keep the running sums short. An entry of weight 0 is never chosen.
    """
    size = weights.shape[-1]
    if size <= 2 * CDF_BLOCK:
        return _first_above(weights, uniform * weights.sum(-1))[0]
    padded = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, -size % CDF_BLOCK)])
    blocks = padded.reshape(*weights.shape[:-1], -1, CDF_BLOCK)
    sums = blocks.sum(-1)
    block, before = _first_above(sums, uniform * sums.sum(-1))
    entries = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    return block * CDF_BLOCK + _first_above(entries, uniform * sums.sum(-1) - before)[0]


def _first_above(weights: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First index whose running sum exceeds `target` (the last positive entry if rounding leaves none), and the sum before."""
    running = jnp.cumsum(weights, axis=-1)
    above = (running > target[..., None]) & (weights > 0)
    last = weights.shape[-1] - 1 - jnp.argmax(weights[..., ::-1] > 0, axis=-1)
    index = jnp.where(above.any(-1), jnp.argmax(above, axis=-1), last).astype(jnp.int32)
    return index, _take(running, index) - _take(weights, index)


def _log_softmax_at(logits: jax.Array, token: jax.Array) -> jax.Array:
    return _take(logits, token) - jax.nn.logsumexp(logits, axis=-1)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]


def row_keys(seed: int, problems: jax.Array, samples: jax.Array) -> jax.Array:
    """Keys of the rows: a function of (seed, problem, sample index). `problems` and `samples` are uint32 of one shape."""
    base = jax.random.key(seed)
    fold = jax.vmap(lambda problem, sample: jax.random.fold_in(jax.random.fold_in(base, problem), sample))
    return fold(problems.reshape(-1), samples.reshape(-1)).reshape(problems.shape)


def row_uniforms(keys: jax.Array, ages: jax.Array) -> jax.Array:
    """One number in [0, 1) per row: a function of its key and of the token's place in its solution."""
    draw = jax.vmap(lambda key, age: jax.random.uniform(jax.random.fold_in(key, age)))
    return draw(keys.reshape(-1), ages.reshape(-1)).reshape(ages.shape)
