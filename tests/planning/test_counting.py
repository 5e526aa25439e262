"""Operations counted against a calculation by hand; the walk through compiled text against one written by hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from e2h_jax.models import flash
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.models.store import Described
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.planning import flops, traffic
from e2h_jax.planning.hlo import Module


@pytest.mark.parametrize("remat", ["none", "full"])
def test_operations_of_a_training_step_are_those_of_a_calculation_by_hand(remat, plan_of, assumed, topology):
    c = LlamaConfig(64, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp_width=64, remat=remat)
    assumed = dataclasses.replace(assumed, model=lambda path: Described("policy", c))
    (program,) = plan_of("sft", microbatches=2).programs(topology, assumed)
    tokens, length = 16 * 32, 32
    projections = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.width * c.mlp_width
    attention = 2 * length * c.heads * c.head_dim  # scores and the sum of values, every token with every other
    down, head = c.width * c.mlp_width, c.width * c.vocab_size
    # Forward once, backward twice; the loss recomputes its logits. A layer's last product need not be recomputed.
    layer = 3 * (projections + attention) + (projections + attention - down if remat == "full" else 0)
    expected = 2 * tokens * (c.layers * layer + 4 * head)
    assert flops.count(program.trace(), "cpu") == pytest.approx(expected, rel=0.02)


def test_loops_branches_and_platforms_count_as_often_as_they_run():
    x = jnp.ones((8, 8))
    product = 2 * 8**3

    def count(f, platform="cpu", loops=()):
        return flops.count(jax.jit(f).trace(x), platform, loops) / product

    def loop(x):
        return jax.lax.while_loop(lambda state: state.sum() < 0, lambda state: inner(state @ x), x)

    def inner(x):
        return jax.lax.while_loop(lambda state: state.sum() < 0, lambda state: state @ x, x)

    assert count(lambda x: jax.lax.scan(lambda carry, _: (carry @ x, None), x, length=5)[0]) == 5
    assert count(loop, loops=(3, 7)) == 3 * (1 + 7)
    assert count(lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x)) == 2
    by_platform = lambda x: jax.lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x)  # noqa: E731
    assert (count(by_platform), count(by_platform, "tpu")) == (2, 1)


TEXT = """HloModule test

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%slice (p: f32[4,256], i: s32[]) -> f32[256] {
  %p = f32[4,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %cut = f32[1,256]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,256}
  ROOT %flat = f32[256]{0} bitcast(%cut)
}

%body (state: (s32[], f32[256], f32[4,256])) -> (s32[], f32[256], f32[4,256]) {
  %state = (s32[], f32[256]{0}, f32[4,256]{1,0}) parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  %x = f32[256]{0} get-tuple-element(%state), index=1
  %all = f32[4,256]{1,0} get-tuple-element(%state), index=2
  %one = s32[] constant(2)
  %next = s32[] add(%counter, %one)
  %row = f32[256]{0:T(256)S(1)} fusion(%all, %counter), kind=kLoop, calls=%slice
  %reduced = f32[256]{0} all-reduce(%row), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %new = (s32[], f32[256]{0}, f32[4,256]{1,0}) tuple(%next, %reduced, %all)
}

%condition (state: (s32[], f32[256], f32[4,256])) -> pred[] {
  %state = (s32[], f32[256]{0}, f32[4,256]{1,0}) parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(8)
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}

ENTRY %main (x: f32[256], all: f32[4,256]) -> f32[2,256] {
  %x = f32[256]{0} parameter(0)
  %all = f32[4,256]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[256]{0}, f32[4,256]{1,0}) tuple(%zero, %x, %all)
  %loop = (s32[], f32[256]{0}, f32[4,256]{1,0}) while(%begin), condition=%condition, body=%body
  %last = f32[256]{0} get-tuple-element(%loop), index=1
  ROOT %joined = f32[2,256]{1,0} all-gather(%last), channel_id=2, replica_groups=mesh['a'=4,'b'=2] {'b'}, dimensions={0}
}
"""


def test_a_loops_collectives_and_bytes_are_counted_as_often_as_it_runs():
    found = traffic.measure(Module(TEXT))
    # Four rounds, from 0 to 8 by twos. In a ring of four each sends 2 x 3/4 of 1 KiB; in one of two, half of 2 KiB.
    assert found.collectives == {"all-reduce": (4.0, 4 * 1.5 * 1024), "all-gather": (1.0, 1024.0)}
    # A round reads its row of `all`, 1 KiB, and the place of it; the row stays in S(1), the core's own memory. `next` adds two
    # numbers of 4 bytes.
    assert found.bytes == 4 * (1024 + 4 + 3 * 4)


@pytest.mark.parametrize("known", ["known_trip_count", "given"])
def test_iterations_that_the_text_does_not_tell(known):
    text = TEXT.replace("%limit = s32[] constant(8)", "%limit = s32[] get-tuple-element(%state), index=0")
    if known == "known_trip_count":
        text = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    loops = () if known == "known_trip_count" else (5,)
    assert traffic.measure(Module(text), loops).collectives["all-reduce"][0] == 5


def test_a_kernel_on_a_mesh_counts_on_every_device():
    mesh = make_mesh((1, 2, 2), jax.devices()[:4])
    q, ids = jax.ShapeDtypeStruct((4, 256, 4, 128), jnp.bfloat16), jax.ShapeDtypeStruct((4, 256), jnp.int32)
    with jax.set_mesh(mesh):
        attend = jax.jit(lambda *operands: flash.on_mesh(partial(flash.splash, interpret=True), *operands, None))
        traced = attend.trace(q, q, q, ids)
    # Scores and their sums with the values, of one block of 256: the half above the diagonal is computed too.
    assert flops.count(traced, "tpu") == 2 * 2 * 4 * 4 * 256 * 256 * 128
