"""A 7b training step and a 7b sampler, compiled for a TPU v5e:4x4 that is not there."""

import importlib.util
import os

import pytest

from e2h_jax import stage
from e2h_jax.models.presets import HUB, get_preset
from e2h_jax.parallel.devices import GIB
from e2h_jax.parallel.programs import Assumed
from e2h_jax.planning import topologies
from e2h_jax.planning.compiling import Compiler
from e2h_jax.planning.estimate import estimates
from e2h_jax.planning.models import Models
from e2h_jax.planning.stages import Planned

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, TPU's compiler, is not installed")
LLEMMA = "EleutherAI/llemma_7b"
PARAMETERS = 6.74e9


@pytest.fixture(scope="module")
def topology():
    with pytest.MonkeyPatch.context() as patch:
        environment = dict(os.environ)
        found = topologies.parse("v5e:4x4")
        topologies.prepare([found], environment)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield found


def plan(topology, name, **fields):
    config = stage.load(name).defaults().copy_and_resolve_references().unlock()
    config.update(fields)
    assumed = Assumed(Models({}, {}, 32000), prompt_tokens=384)
    return estimates(Planned(name, name, config.lock(), "config."), topology, assumed, Compiler())


def test_a_training_step_of_llemma_7b(topology):
    (step,) = plan(topology, "sft", init=LLEMMA, remat="full", batch_size=16, length=1024)
    assert step.fits and step.limit == 15.75 * GIB
    assert step.memory["parameters"] == pytest.approx(4 * PARAMETERS / 16, rel=0.01)
    assert step.memory["optimiser"] == pytest.approx(8 * PARAMETERS / 16, rel=0.01)
    # Forward once, backward twice, the layers once more but for their last product; the loss makes its logits anew.
    c = get_preset(HUB[LLEMMA])
    width, mlp = c["width"], c["width"] * c["mlp_width"]
    layer = 4 * width * width + 3 * mlp + 2 * 1024 * width
    by_hand = 2 * 16 * 1024 * (c["layers"] * (4 * layer - mlp) + 4 * width * c["vocab_size"])
    assert step.flops * 16 == pytest.approx(by_hand, rel=0.02)
    # What each device lacks of the weights is gathered at least twice, in bfloat16, and gradients are scattered.
    assert 2 * 2 * PARAMETERS < step.sent < 10 * 2 * PARAMETERS


def test_a_sampler_of_llemma_7b(topology):
    rows = {"rows": 64, "rows_per_prompt": 1, "max_new_tokens": 64, "prompt_bucket": 512, "top_k": 0, "mesh": (1, 1, 16)}
    load, prefill, decode = plan(topology, "sample", model=LLEMMA, samples=1, **rows)
    assert load.fits and prefill.fits and decode.fits
    assert decode.memory["parameters"] == pytest.approx(2 * PARAMETERS / 16, rel=0.01)
    c = get_preset(HUB[LLEMMA])
    column = 2 * 2 * c["layers"] * c["kv_heads"] * c["head_dim"] / 16  # keys and values of a token, bfloat16
    logits = 3 * 64 * 4 * 32016 / 16  # of the rows, and of the prompts in both places
    assert decode.memory["cache"] == pytest.approx(64 * (2 * 512 + 64) * column + logits, rel=0.01)
    # In 32 steps each of 64 rows meets each weight; and they read all weights every time.
    assert decode.flops == pytest.approx(2 * 32 * 64 * PARAMETERS / 16, rel=0.2)
    assert decode.moved > 32 * 2 * PARAMETERS / 16


@pytest.mark.parametrize(("name", "devices"), [("v5e:1x1", 1), ("v5e:2x2", 4), ("v6e:1x1", 1), ("tpu7x:2x2x1", 8)])
def test_the_smallest_slices_are_known(topology, name, devices):
    assert len(topologies.parse(name).devices()) == devices
