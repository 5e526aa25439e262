"""How fast decoding could be: the time that its arithmetic and its memory traffic need at the device's limits."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp

from e2h_jax.models.projection import PRODUCTS, input_axes, project
from e2h_jax.parallel.devices import PUBLISHED, Peaks, fastest, measured_bandwidth
from e2h_jax.parallel.rules import constrain
from e2h_jax.sampling.kernel import Kernel
from e2h_jax.sampling.scheduler import Round


class Roofline:
    """Lower bounds for one kernel on its mesh; `known` is False where the chip's limits are not.

    A step reads every weight once and every cached key and value that its programs touch, and multiplies each row with every
    weight; the larger of the two times counts. Work is taken to be spread evenly over the mesh. The embedding is looked up, not
    multiplied. A CPU's limits are measured, that of its arithmetic with the products of a step themselves.
    """

    def __init__(self, kernel: Kernel):
        c = kernel.config
        device = kernel.mesh.devices.flat[0]
        if device.platform == "cpu":
            self.peaks = None if kernel.abstract else _measured(kernel)
        else:
            self.peaks = PUBLISHED.get(device.device_kind)
        self.known = self.peaks is not None
        self._rows, self._groups = kernel.groups * kernel.rows, kernel.groups
        self._devices = kernel.mesh.devices.size
        weights = jax.tree.leaves(kernel.weights())
        self._weights = sum(weight.size for weight in weights)
        # Weights are held once by every group of `tensor` devices that share a row (gathered over the others, if cut there).
        self._weight_bytes = sum(weight.size * weight.dtype.itemsize for weight in weights) * kernel.shards
        self._column_bytes = 2 * c.layers * c.kv_heads * c.head_dim * jnp.dtype(c.dtype).itemsize
        self._column_flops = 4 * c.layers * c.heads * c.head_dim

    def seconds(self, round_: Round) -> float:
        """The least time for the steps of a round; 0 if the limits are not known."""
        if not self.known:
            return 0.0
        flops, traffic = self.work(round_.steps, round_.columns)
        return max(flops / self.peaks.flops, traffic / self.peaks.bandwidth)

    def work(self, steps: int, columns: tuple[int, int]) -> tuple[float, float]:
        """Operations and bytes of one device in so many steps that read these columns of prompts and of suffixes."""
        prompt, suffix = columns
        flops = self._rows * (2 * self._weights + self._column_flops * (prompt + suffix))
        traffic = self._weight_bytes + self._column_bytes * (self._groups * prompt + self._rows * suffix)
        return steps * flops / self._devices, steps * traffic / self._devices


def _measured(kernel: Kernel) -> Peaks:
    """Limits of a CPU device: a step's products of weights alone, with its number of rows, and one pass over its memory."""
    rows, weights = kernel.groups * kernel.rows, kernel.weights()

    @jax.jit
    def products(weights):
        results = []
        for name, weight in _matrices(weights):
            inputs = jnp.ones((rows, *(weight.shape[axis] for axis in input_axes(name))), kernel.config.dtype)
            inputs = constrain(jax.lax.optimization_barrier(inputs), "batch", *[None] * (inputs.ndim - 1))
            results.append(project(SimpleNamespace(**{name: weight}), name, inputs))
        return results

    with jax.set_mesh(kernel.mesh):
        seconds = fastest(products, weights)
    flops = sum(2 * rows * weight.size for _, weight in _matrices(weights)) / seconds
    return Peaks(flops / kernel.mesh.devices.size, measured_bandwidth(kernel.mesh.local_devices[0]))


def _matrices(weights: list[dict[str, jax.Array]]) -> list[tuple[str, jax.Array]]:
    """Those that activations are multiplied with."""
    return [(name, weight) for part in weights for name, weight in part.items() if name in PRODUCTS]
