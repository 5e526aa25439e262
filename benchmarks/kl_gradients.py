"""How much of a KL's gradient each estimate has in expectation, in the reward and in the loss (docs/ppo.md#kl-estimators).

Policies and references over five tokens, every token enumerated; logits that differ by 0.03 or 1.5 (standard deviation).
Printed for each: the expected gradient along the true one, over its length, mean of 300 pairs. 1 is right.

    python benchmarks/kl_gradients.py
"""

import jax
import jax.numpy as jnp
import numpy as np

from e2h_jax.algorithms.advantages import KL_ESTIMATORS, kl

jax.config.update("jax_enable_x64", True)


def expected(place, name, logits, reference):
    """Gradient by the logits of the estimate's mean: through the estimate alone (loss), or the drawing alone (reward)."""
    drawn = jax.nn.softmax(logits)

    def loss(x):
        return drawn @ kl(name, jax.nn.log_softmax(x), reference)

    def reward(x):
        return jax.nn.softmax(x) @ kl(name, jax.nn.log_softmax(logits), reference)

    return jax.grad({"loss": loss, "reward": reward}[place])(logits)


def main():
    rng = np.random.default_rng(0)
    print("estimate    place   near   far")
    pairs = {}
    for distance in (0.03, 1.5):
        logits = rng.normal(size=(300, 5))
        pairs[distance] = logits, jax.nn.log_softmax(logits + distance * rng.normal(size=(300, 5)))

    def divergence(x, reference):
        return jax.nn.softmax(x) @ (jax.nn.log_softmax(x) - reference)

    true = jax.vmap(jax.grad(divergence))
    for name in KL_ESTIMATORS:
        for place in ("reward", "loss"):
            found = jax.vmap(lambda x, ref, place=place, name=name: expected(place, name, x, ref))
            shares = []
            for logits, reference in pairs.values():
                right = true(logits, reference)
                shares.append(float(jnp.mean(jnp.sum(found(logits, reference) * right, 1) / jnp.sum(right**2, 1))))
            print(f"{name:11} {place:7} {shares[0]:5.2f} {shares[1]:5.2f}")


if __name__ == "__main__":
    main()
