"""The limits of decoding: what a step must compute and read, and what a CPU's cores can do together."""

import jax
import pytest

from e2h_jax.parallel.devices import Peaks
from e2h_jax.sampling import roofline
from e2h_jax.sampling.roofline import Roofline
from e2h_jax.sampling.scheduler import Round

ROUND = Round([], steps=10, busy_tokens=0, columns=(64, 72), prefill_seconds=0.0, decode_seconds=0.0)


@pytest.mark.parametrize("flops, bandwidth", [(1e9, 1e30), (1e30, 1e9)], ids=["arithmetic", "memory"])
def test_a_cpus_limit_is_that_of_all_its_cores_however_many_devices_they_are(tools, monkeypatch, flops, bandwidth):
    monkeypatch.setattr(roofline, "_measured", lambda kernel, rows: Peaks(flops, bandwidth))
    policies = [tools.policy(mesh=mesh) for mesh in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2))]
    one, *others = [Roofline(policy.kernel(4, 2)).seconds(ROUND) for policy in policies]
    assert others == [one] * 3
    # By hand: 2 layers, width 32, 4 and 2 heads of 8, MLP of 48, 36 tokens of vocabulary; four bytes a number.
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    norms = 2 * 2 * 32 + 32
    weights = 2 * layer + norms + 32 * 36
    if bandwidth == 1e9:
        columns = 2 * 2 * 2 * 8 * (4 * 64 + 8 * 72)  # layers, keys and values, heads, head size
        assert one == pytest.approx(10 * 4 * (weights + columns) / 1e9)
    else:
        assert one == pytest.approx(10 * 8 * (2 * weights + 4 * 2 * 4 * 8 * (64 + 72)) / 1e9)


def test_work_is_that_of_one_device(tools):
    """For `e2h plan`: each of two devices that hold rows of their own reads all weights."""
    (flops, traffic), (half, read) = (
        Roofline(tools.policy(mesh=mesh).kernel(4, 2)).work(10, (64, 72)) for mesh in ((1, 1, 1), (2, 1, 1))
    )
    assert half == flops / 2 and traffic / 2 < read < traffic


def test_the_faster_way_to_multiply_on_all_cores_counts(policy, monkeypatch):
    """Heads 3 s; the layers 5 s by one program after the other, or 2 s dealt out to the cores."""
    kernel, calls = policy.kernel(4, 2), []

    def fastest(f, *arguments):
        jax.block_until_ready(f(*arguments))
        calls.append(arguments)
        return {0: 2.0, 1: 3.0, 2: 5.0}[len(calls) - 1]

    monkeypatch.setattr(roofline, "fastest", fastest)
    monkeypatch.setattr(roofline, "measured_bandwidth", lambda device: 7.0)
    products = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + 32 * 36
    assert roofline._measured(kernel, 8) == Peaks(pytest.approx(2 * 8 * products / (3.0 + 2.0)), 7.0)
    shapes = [[sorted(part) for part in arguments[0]] for arguments in calls[1:]]
    assert shapes == [[["lm_head"]], [["down", "gate", "k", "o", "q", "up", "v"]] * 2]
