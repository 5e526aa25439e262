"""What a chip can do at best: published peaks of accelerators, measured bandwidth of CPUs."""

import contextlib
import math
import re
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Peaks(NamedTuple):
    """Limits of one device."""

    flops: float  # matrix products, operations per second; published ones are bfloat16's
    bandwidth: float  # main memory, bytes per second


# By `device_kind`: dense bfloat16, no sparsity. From Cloud TPU's system architecture pages and NVIDIA's data sheets (SXM).
PUBLISHED = {
    "TPU v4": Peaks(275e12, 1.228e12),
    "TPU v5 lite": Peaks(197e12, 0.819e12),
    "TPU v5": Peaks(459e12, 2.765e12),
    "TPU v5p": Peaks(459e12, 2.765e12),
    "TPU v6 lite": Peaks(918e12, 1.64e12),
    "TPU7x": Peaks(2307e12 / 2, 7.38e12 / 2),  # a chip has two cores, and each is a device
    "NVIDIA A100-SXM4-80GB": Peaks(312e12, 2.039e12),
    "NVIDIA H100 80GB HBM3": Peaks(989e12, 3.35e12),
    "NVIDIA H200": Peaks(989e12, 4.8e12),
}


class Chip(NamedTuple):
    """What else counts when a program is planned for a device of a TPU slice."""

    memory: float  # bytes that a program may use: the compiler keeps some for itself
    links: float  # bytes per second that all its links to other chips send together


GIB = 2**30

# By `device_kind`. Memory: what libtpu gives as available when a program needs too much, of 32, 16, 95, 32 and 192 GiB a chip
# (0.0.42 says 0.01 GiB more of v5p, v6e and tpu7x). Links: half of the bidirectional bandwidth of a chip in Cloud TPU's pages
# of v5e (400 GB/s), v5p (1200), v6e (800) and tpu7x (1200); of v4, six links of 50 GB/s each way (Jouppi et al. 2023,
# arXiv 2304.01433).
CHIPS = {
    "TPU v4": Chip(30.75 * GIB, 300e9),
    "TPU v5 lite": Chip(15.75 * GIB, 200e9),
    "TPU v5": Chip(95.73 * GIB, 600e9),
    "TPU v6 lite": Chip(31.24 * GIB, 400e9),
    "TPU7x": Chip(94.74 * GIB, 300e9),  # of one of the chip's two devices
}


def free_memory(device: jax.Device, *, described: bool = False, sharing: int = 0) -> float:
    """Bytes that arrays may still take on a device; on a CPU device its share of what the machine has left.

    Of one that is only `described`, what a program may use. Infinite where nobody tells.

    Args:
      sharing: the machine's devices that are in use; 0 = all of a CPU's.
    """
    if device.platform == "cpu":
        return machine_memory() / (sharing or len(jax.local_devices(backend="cpu")))
    if described:
        return CHIPS[device.device_kind].memory if device.device_kind in CHIPS else math.inf
    told = device.memory_stats() or {}
    return told["bytes_limit"] - told["bytes_in_use"] if "bytes_limit" in told else math.inf


def peak_memory() -> float | None:
    """Bytes that the fullest of this process's devices has held at most; None where they do not tell."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return None if None in peaks else max(peaks)


def machine_memory(folder: Path = Path("/")) -> float:
    """Bytes that this process may still take: of the machine, and of its container. `folder`: where proc and sys are."""
    free = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        (line,) = re.findall(r"MemAvailable: +(\d+) kB", (folder / "proc/meminfo").read_text())
        free.append(1024 * int(line))
    with contextlib.suppress(OSError, ValueError):  # "max": there is no limit
        group = folder / "sys/fs/cgroup"
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(free)


def measured_bandwidth(device: jax.Device) -> float:
    """Bytes per second at which a CPU's cores together read a matrix of 256 MB, beyond every cache, for one product."""
    with jax.default_device(device):
        matrix, vector = jnp.ones((4096, 2**14)), jnp.ones(2**14)
        return matrix.nbytes / fastest(jax.jit(jnp.matmul), matrix, vector)


def fastest(f, *arguments) -> float:
    """Seconds of the fastest of five calls after one to warm up."""
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
