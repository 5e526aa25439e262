"""How fast decoding could be: the time that its arithmetic and its memory traffic need at the device's limits."""

import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import jax.numpy as jnp

from e2h_jax.models.projection import PRODUCTS, input_axes, project
from e2h_jax.parallel.devices import PUBLISHED, Peaks, fastest, measured_bandwidth
from e2h_jax.sampling.kernel import Kernel
from e2h_jax.sampling.scheduler import Round

MEASURED = 2**28  # bytes of the layers that a CPU's products are measured with: beyond its caches


class Roofline:
    """Lower bounds for one kernel on its mesh; `known` is False where the chip's limits are not.

    A step reads every weight once and every cached key and value that its programs touch, and multiplies each row with every
    weight; the larger of the two times counts. Work is taken to be spread evenly over the mesh. The embedding is looked up, not
    multiplied. A CPU's limits are measured, that of its arithmetic with the products of a step themselves. They are those of
    all cores, however many devices the cores pass for: the same speed is the same share of them on two devices and on one.
    """

    def __init__(self, kernel: Kernel):
        c, devices = kernel.config, kernel.mesh.devices
        self._rows, self._groups, self._shards = kernel.groups * kernel.rows, kernel.groups, kernel.shards
        self._devices = self._machines = devices.size
        if devices.flat[0].platform == "cpu":
            self._machines = len({device.process_index for device in devices.flat})
            self.peaks = None if kernel.abstract else _measured(kernel, -(-self._rows // self._machines))
        else:
            self.peaks = PUBLISHED.get(devices.flat[0].device_kind)
        self.known = self.peaks is not None
        weights = jax.tree.leaves(kernel.weights())
        self._weights = sum(weight.size for weight in weights)
        self._weight_bytes = sum(weight.size * weight.dtype.itemsize for weight in weights)
        self._column_bytes = 2 * c.layers * c.kv_heads * c.head_dim * jnp.dtype(c.dtype).itemsize
        self._column_flops = 4 * c.layers * c.heads * c.head_dim

    def seconds(self, round_: Round) -> float:
        """The least time for the steps of a round; 0 if the limits are not known."""
        if not self.known:
            return 0.0
        flops, traffic = self._work(round_.steps, round_.columns, self._machines)
        return max(flops / self.peaks.flops, traffic / self.peaks.bandwidth)

    def work(self, steps: int, columns: tuple[int, int]) -> tuple[float, float]:
        """Operations and bytes of one device in so many steps that read these columns of prompts and of suffixes."""
        return self._work(steps, columns, self._devices)

    def _work(self, steps: int, columns: tuple[int, int], parts: int) -> tuple[float, float]:
        """The same of one of the parts that the mesh is taken to consist of: devices, or machines of several."""
        prompt, suffix = columns
        flops = self._rows * (2 * self._weights + self._column_flops * (prompt + suffix))
        # Weights are held once by every group of `tensor` devices that share a row (gathered over the others, if cut there).
        copies = max(1.0, self._shards * parts / self._devices)
        traffic = copies * self._weight_bytes + self._column_bytes * (self._groups * prompt + self._rows * suffix)
        return steps * flops / parts, steps * traffic / parts


def _measured(kernel: Kernel, rows: int) -> Peaks:
    """Limits of a machine whose devices are its CPU: a step's products with so many rows, and one pass over its memory.

    XLA divides a large product among the cores and leaves a small one to one of them. So the layers are also dealt out to as
    many threads as there are cores, and the faster way counts.
    """
    device, cores = kernel.mesh.local_devices[0], os.cpu_count() or 1
    heads, *layers = [{n: weight for n, weight in part.items() if n in PRODUCTS} for part in kernel.weights()]
    size = sum(weight.size * weight.dtype.itemsize for weight in layers[0].values())
    count = min(len(layers), max(1, MEASURED // size))
    count -= count % cores if count > cores else 0

    @jax.jit
    def products(parts):
        results = []
        for part in parts:
            for name, weight in part.items():
                inputs = jnp.ones((rows, *(weight.shape[axis] for axis in input_axes(name))), kernel.config.dtype)
                results.append(project(SimpleNamespace(**{name: weight}), name, jax.lax.optimization_barrier(inputs)))
        return results

    # Of the weights' shapes: they themselves may be cut over several devices.
    filled = [{n: jnp.ones(w.shape, w.dtype, device=device) for n, w in part.items()} for part in (heads, *layers[:count])]
    with ThreadPoolExecutor(cores) as pool:
        shares = [filled[1 + core :: cores] for core in range(min(cores, count))]
        apart = fastest(lambda: list(pool.map(products, shares)))
    seconds = fastest(products, filled[:1]) + min(apart, fastest(products, filled[1:])) * len(layers) / count
    flops = sum(2 * rows * weight.size for part in (heads, *layers) for weight in part.values()) / seconds
    return Peaks(flops, measured_bandwidth(device))
