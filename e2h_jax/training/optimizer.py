"""AdamW with a warm-up and cosine schedule in float32, and frozen parameters that take no optimiser memory."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from e2h_jax.errors import UserError


def defaults() -> ml_collections.ConfigDict:
    """Fields of `config.optimizer`."""
    config = ml_collections.ConfigDict()
    config.learning_rate = 2e-5  # peak
    config.final_fraction = 0.01  # the cosine tends to learning_rate * this, one step after the last
    config.warmup_fraction = 0.05  # of all steps, linear from 0 (the original: 0.2 of one epoch)
    config.first_rate_zero = False  # True: the first step has rate 0 and does nothing, as in the original
    config.b1 = 0.9
    config.b2 = 0.999
    config.eps = 1e-8
    config.weight_decay = 0.0
    config.clip_norm = 1.0  # global gradient norm; 0 = no clipping
    config.freeze = ()  # parameters whose path matches one of these regular expressions stay as they are
    return config


def check(config) -> None:
    """Raises UserError for numbers with which no optimiser learns."""
    for name in ("learning_rate", "eps", "weight_decay", "clip_norm"):
        if config[name] < 0:
            raise UserError(f"config.optimizer.{name}={config[name]} must be at least 0")
    for name in ("b1", "b2"):
        if not 0 <= config[name] < 1:
            raise UserError(f"config.optimizer.{name}={config[name]} must be at least 0 and below 1")
    for name in ("final_fraction", "warmup_fraction"):
        if not 0 <= config[name] <= 1:
            raise UserError(f"config.optimizer.{name}={config[name]} must be from 0 to 1")


def schedule(config, steps: int) -> optax.Schedule:
    """Learning rate at each optimiser step 0 … steps-1; step 0 already moves, unless `first_rate_zero` is set."""
    warmup, first = max(1, round(config.warmup_fraction * steps)), 0 if config.first_rate_zero else 1

    def rate(count):
        done = jnp.clip((count - warmup) / max(1, steps - warmup), 0.0, 1.0)
        cosine = config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return config.learning_rate * jnp.where(count < warmup, (count + first) / warmup, cosine)

    return rate


def parameter_name(path) -> str:
    """'blocks/q' for the tree path of a parameter."""
    keys = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path)
    return "/".join(str(key) for key in keys if key != "value")


def make_optimizer(config, steps: int, params) -> optax.GradientTransformation:
    """AdamW of `config` (see `defaults`) for `params` (a pytree of nnx.Params or their shapes).

    The learning rate follows `schedule` over `steps`: at the `step` passed to `update` (from 0), or else at its own count of
    updates. A caller with several updates per step, or with none in some steps, passes `step`.

    Raises UserError as `check` does, when a `freeze` pattern matches no parameter, or all of them are frozen.
    """
    check(config)
    transform = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.chain(  # in its own chain, as in optax.adamw: older checkpoints fit
            optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
            optax.add_decayed_weights(config.weight_decay),
            _scale_by_rate(schedule(config, steps)),
        ),
    )
    if not config.freeze:
        return transform
    names = [parameter_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in config.freeze:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"config.optimizer.freeze: {pattern!r} is not a regular expression ({error})") from None
        if not any(re.search(pattern, name) for name in names):
            raise UserError(f"config.optimizer.freeze: {pattern!r} matches none of the parameters {', '.join(names)}")
    frozen = {name for name in names if any(re.search(pattern, name) for pattern in config.freeze)}
    if len(frozen) == len(names):
        raise UserError(f"config.optimizer.freeze={tuple(config.freeze)} freezes every parameter")
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "frozen" if parameter_name(path) in frozen else "trained", params
    )
    partition = optax.multi_transform({"trained": transform, "frozen": optax.set_to_zero()}, labels)
    return Freezing(partition.init, partition.update, frozenset(frozen))


class Freezing(NamedTuple):
    """An optax transformation that leaves parameters of these names (`parameter_name`) as they are."""

    init: Callable
    update: Callable
    frozen: frozenset[str]


def stop_frozen(optimizer: optax.GradientTransformation | Freezing, params):
    """`params`; those that `optimizer` leaves as they are have no gradient.

    So none is computed, and the norm of the gradient is that of what is trained, which is what the clip sees.
    """
    if not isinstance(optimizer, Freezing):
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.stop_gradient(leaf) if parameter_name(path) in optimizer.frozen else leaf, params
    )


def _scale_by_rate(rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Updates times -rate(step); its state is the step after the last, and so the next one where `step` is not told."""

    def update(updates, state, params=None, *, step=None, **_):
        step = state.count if step is None else step
        factor = -rate(step)
        scaled = jax.tree.map(lambda u: jnp.asarray(factor, u.dtype) * u, updates)
        return scaled, optax.ScaleByScheduleState(jnp.asarray(step + 1, jnp.int32))

    return optax.GradientTransformationExtraArgs(lambda params: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update)
