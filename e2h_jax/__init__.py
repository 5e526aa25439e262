"""e2h_jax: easy-to-hard generalization for reasoning language models, in JAX."""

__version__ = "0.2.0"
