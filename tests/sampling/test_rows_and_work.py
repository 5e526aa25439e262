"""Rows go where samples are left: the shapes and the scheduler alone, with a kernel of arithmetic."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from e2h_jax.sampling.exchange import targets_of
from e2h_jax.sampling.grouping import grouping


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parents[2] / "benchmarks" / "sampling_rows.py"
    spec = importlib.util.spec_from_file_location("sampling_rows", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "rows, shards, prompts, samples, expected",
    [
        (32, 1, 1, 32, (1, 32)),  # each prompt has a group of its own from the beginning to the end
        (32, 1, 4, 8, (4, 8)),
        (32, 1, 32, 1, (32, 1)),
        (256, 1, 4, 8, (4, 8)),  # no more rows than samples
        (32, 1, 3, 11, (3, 6)),  # 33 samples need two turns in any case: 18 rows do as well as 32
        (32, 1, 5, 32, (4, 8)),  # prompts follow each other: a quarter of their samples at a time
        (32, 1, 100, 3, (32, 1)),
        (32, 1, 3, 65, (2, 14)),  # 195 samples: seven turns of 28, where 2 x 16 rows would be idle in most of the last
        (256, 1, 600, 16, (64, 4)),
        (256, 1, 0, 16, (64, 4)),  # too many to count
        (256, 1, 0, 100, (16, 16)),
        (32, 2, 1, 32, (2, 16)),  # a group in each shard
        (32, 2, 4, 8, (4, 8)),
        (32, 8, 4, 8, (8, 4)),
        (8, 8, 1, 1, (8, 1)),
    ],
)
def test_groups_and_their_rows(rows, shards, prompts, samples, expected):
    assert grouping(rows, shards, prompts, samples) == expected


def test_a_number_of_rows_that_is_given_depends_on_nothing_else():
    assert {grouping(32, 2, prompts, samples, 5) for prompts in (0, 1, 4, 100) for samples in (1, 8, 99)} == {(6, 5)}
    assert grouping(32, 4, 1, 8, 16) == (4, 8)  # no more than a shard has


def test_no_mix_leaves_rows_idle_when_solutions_have_one_length(bench):
    mixes = [(prompts, samples) for prompts in (1, 2, 3, 5, 7, 9, 16, 33, 70) for samples in (1, 2, 3, 5, 8, 11, 32, 65)]
    mixes = [*bench.SHAPES, *(mix for mix in mixes if mix[0] * mix[1] >= 32)]
    for shards in 1, 2:
        for mix in mixes:
            found = bench.simulate(np.full(mix, 64), 32, shards=shards)
            assert found.useful >= 0.9, (shards, mix)
            assert found.kernel.groups * found.kernel.rows <= 32


def test_skewed_lengths_keep_what_list_scheduling_keeps(bench):
    """Which knows no groups and no places, on average over eight draws; one draw is a matter of which sample comes last."""
    for mix in (*bench.SHAPES, (16, 64), (60, 16)):
        found = [bench.simulate(bench.skewed(mix, seed), 32) for seed in range(8)]
        assert sum(one.useful for one in found) >= 0.95 * sum(one.by_list for one in found), mix


def test_groups_without_a_prompt_of_their_own_copy_one(bench):
    """Two prompts, four groups of two rows: each is computed once, for two groups, and all eight samples begin at once."""
    found = bench.simulate(np.full((2, 4), 64), 8, shared=2)
    assert (found.kernel.groups, found.kernel.rows) == (4, 2)
    assert found.kernel.prefilled == [[0], [1]]
    assert sorted(found.kernel.schedule) == [
        (0, 0, 0, 0, 0), (0, 1, 0, 2, 0),
        (1, 0, 1, 0, 0), (1, 1, 1, 2, 0),
        (2, 0, 0, 1, 0), (2, 1, 0, 3, 0),
        (3, 0, 1, 1, 0), (3, 1, 1, 3, 0),
    ]  # fmt: skip
    assert found.useful == 1


def test_shards_prefill_side_by_side(bench):
    """Four prompts, two shards of four groups: two calls, and no prompt is computed in both shards."""
    found = bench.simulate(np.full((4, 8), 64), 32, shards=2, shared=4)
    assert found.kernel.prefilled == [[0, 1], [2, 3]]
    assert {(group // 4, prompt) for group, _, prompt, _, _ in found.kernel.schedule} == {(0, 0), (0, 2), (1, 1), (1, 3)}
    assert found.useful == 1
    # One prompt is computed in both at once.
    assert bench.simulate(np.full((1, 32), 64), 32, shards=2).kernel.prefilled == [[0, 0]]


def test_a_group_that_is_out_of_work_takes_over_at_the_next_dispatch(bench):
    """Two groups of two rows. Prompt 0: six samples of 8 steps, over at 24. Prompt 1: six of 64, two of which group 0 begins at
    32, when the host looks in; the last two are kept for the rows of group 1, which end at 64 for certain."""
    found = bench.simulate(np.array([[8] * 6, [64] * 6]), 4, shared=2)
    assert (found.kernel.groups, found.kernel.rows) == (2, 2)
    assert found.kernel.prefilled == [[0], [1], [1]]
    assert [(group, row, sample, step) for group, row, prompt, sample, step in found.kernel.schedule if prompt] == [
        (1, 0, 0, 0), (1, 1, 1, 0), (0, 0, 2, 32), (0, 1, 3, 32), (1, 0, 4, 64), (1, 1, 5, 64),
    ]  # fmt: skip
    assert found.kernel.step == 128


def test_the_last_prompts_go_to_all_groups_before_they_are_out_of_work(bench):
    """Four groups of eight rows, five prompts of 32 samples of 40 steps: four turns of the first four prompts. In the fourth,
    the fifth prompt is computed once, for all groups; no row waits for the host, which looks in every 32 steps."""
    found = bench.simulate(np.full((5, 32), 40), 32)
    assert found.kernel.prefilled == [[0], [1], [2], [3], [4]]
    assert found.useful == 1 and found.kernel.step == 200
    assert {(group, step) for group, _, prompt, _, step in found.kernel.schedule if prompt == 4} == {(g, 160) for g in range(4)}


def test_samples_that_a_dispatch_did_not_start_are_dealt_anew(bench):
    """One prompt over two groups of one row; the first sample is long: all others go to the other row."""
    found = bench.simulate(np.array([[256] + [8] * 7]), 2, shared=1)
    assert sorted(sample for group, *_, sample, _ in found.kernel.schedule if group == 1) == list(range(1, 8))
    assert found.kernel.step == 256


def test_targets_of_every_shard_stand_in_lines():
    """Two shards of three groups: the first shard's prompt goes to its groups 0 and 2, the other's to its group 1."""
    targets, count = targets_of(np.array([True, False, True, False, True, False]), 2)
    assert targets.tolist() == [[0, 1], [2, 3], [3, 3]] and count == 2
    assert targets_of(np.zeros(6, bool), 2)[1] == 0
