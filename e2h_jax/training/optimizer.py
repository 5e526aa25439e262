"""AdamW with a warm-up and cosine schedule in float32, and frozen parameters that take no optimiser memory."""

import re

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


def make_optimizer(config, steps: int, params, updates_per_step: int = 1) -> optax.GradientTransformation:
    """AdamW of `config` (see `defaults`) for `params` (a pytree of nnx.Params or their shapes).

    The learning rate follows `schedule` over `steps`, each of which is `updates_per_step` updates (PPO's minibatches).

    Raises UserError as `check` does, when a `freeze` pattern matches no parameter, or all of them are frozen.
    """
    check(config)
    rate = schedule(config, steps)
    transform = optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.adamw(
            lambda count: rate(count // updates_per_step),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
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
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "frozen" if any(re.search(p, parameter_name(path)) for p in config.freeze) else "trained", params
    )
    if "trained" not in jax.tree.leaves(labels):
        raise UserError(f"config.optimizer.freeze={tuple(config.freeze)} freezes every parameter")
    return optax.multi_transform({"trained": transform, "frozen": optax.set_to_zero()}, labels)
