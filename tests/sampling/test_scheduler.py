"""What a sample is must not depend on when, where or beside whom it is drawn."""

import jax
import numpy as np
import pytest

from e2h_jax.sampling.kernel import BLOCK
from e2h_jax.sampling.scheduler import Request, draw, problem_number

LENGTHS = (3, 30, 14, 21, 16, 5, 17, 11, 27, 9)  # buckets of 16 and 32


@pytest.fixture(scope="module")
def reference(policy, tools):
    """Ten problems, eight samples each, through four groups of four rows: every slot and place is used again and again."""
    found = policy.draw(tools.prompts_of(LENGTHS), groups=4, rows=4)
    assert set(found) == {(f"problem/{p}", i) for p in range(len(LENGTHS)) for i in range(8)}
    assert {d.stopped for d in found.values()} == {True, False}
    assert len({tuple(d.tokens.tolist()) for d in found.values()}) > 75  # different streams
    return tools.bits(found)


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_problems(policy, tools, reference, seed):
    requests = tools.prompts_of(LENGTHS)
    shuffled = [requests[i] for i in np.random.default_rng(seed).permutation(len(requests))]
    assert tools.bits(policy.draw(shuffled, groups=4, rows=4)) == reference


def test_any_subset_of_problems(policy, tools, reference):
    requests, rng = tools.prompts_of(LENGTHS), np.random.default_rng(0)
    for size in (1, 2, 3, 5, 7):  # fewer than there are groups: copies of a prompt in several
        chosen = [requests[i] for i in rng.permutation(len(requests))[:size]]
        drawn = policy.draw(chosen, groups=4, rows=4)
        found = tools.bits(drawn)
        assert len(found) == 8 * size and found.items() <= reference.items()
        assert len({d.group for d in drawn.values()}) == min(4, 2 * size)


def test_a_resumed_run_draws_the_missing_samples_as_they_would_have_been(policy, tools, reference):
    rng = np.random.default_rng(1)
    for share in (0.1, 0.5, 0.9):
        requests = [
            Request(r.problem_id, r.tokens, [i for i in r.samples if rng.random() < share]) for r in tools.prompts_of(LENGTHS)
        ]
        found = tools.bits(policy.draw(requests, groups=4, rows=4))
        assert set(found) == {(r.problem_id, i) for r in requests for i in r.samples}
        assert found.items() <= reference.items()


def test_the_same_question_under_another_id_has_its_own_stream(policy, tools, reference):
    request = tools.prompts_of(LENGTHS)[0]
    found = policy.draw([Request("another", request.tokens, range(8))], groups=4, rows=4)
    other = {tuple(d.tokens.tolist()) for d in found.values()}
    assert other != {tuple(tokens) for (problem, _), (tokens, *_) in reference.items() if problem == "problem/0"}


@pytest.mark.parametrize("groups, rows", [(2, 4), (8, 4), (1, 8), (4, 3)])
def test_any_number_of_rows_gives_the_same_tokens(policy, tools, reference, groups, rows):
    agree(policy.draw(longer(tools), groups=groups, rows=rows), reference)


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
def test_eight_devices_give_one_devices_tokens(tools, reference, mesh):
    agree(tools.policy(mesh=mesh).draw(longer(tools), groups=8, rows=4), reference)


def longer(tools):
    """The prompts of the bucket of 32: half the compilations."""
    return [request for request in tools.prompts_of(LENGTHS) if len(request.tokens) > 16]


def agree(found, reference):
    """Other compiled shapes round differently, so the log-probabilities' last bits are free; the tokens are not."""
    assert len(found) == 8 * 4
    for key, drawn in found.items():
        tokens, stopped, logprobs, _ = reference[key]
        assert (drawn.tokens.tolist(), drawn.stopped) == (tokens, stopped)
        np.testing.assert_allclose(drawn.logprobs, np.frombuffer(logprobs, np.float32), atol=1e-4)


@pytest.fixture
def compiled():
    """The names of functions as they are compiled."""
    names = []

    def listen(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def test_programs_are_compiled_when_they_are_needed_and_once(policy, tools, compiled):
    kernel = policy.kernel(4, 4, max_new_tokens=100, seed=77)
    kernel.foresee(LENGTHS)
    there = lambda: {key for key, program in kernel.programs.items() if program is not None}  # noqa: E731
    assert not there() and ("decode", 2, 2) in kernel.programs
    short = [request._replace(samples=range(1)) for request in tools.prompts_of((3, 11))]
    rounds = draw(kernel, short)
    next(rounds)
    assert there() == {("suffix", 64), ("prefill", 16), ("decode", 1, 1)}
    for _ in range(3):
        assert sum(len(round_.drawn) for round_ in draw(kernel, tools.prompts_of(LENGTHS))) == 8 * len(LENGTHS)
    assert there() >= {("prefill", 16), ("prefill", 32), ("decode", 2, 1), ("decode", 2, 2)}
    count = lambda function: sum(function in name for name in compiled)  # noqa: E731
    assert count("_decode") == sum(key[0] == "decode" for key in there())
    assert count("_prefill") == 2 and count("_chunk") == 3  # two of prompts


def test_nothing_compiles_after_warm_up_and_a_prompt_is_prefilled_once(policy, tools, monkeypatch, compiled):
    requests = tools.prompts_of(LENGTHS)
    kernel = policy.kernel(4, 4, max_new_tokens=100)
    kernel.foresee(len(request.tokens) for request in requests)
    kernel.compile()
    compiled.clear()
    prefilled, prefill = [], kernel.prefill
    monkeypatch.setattr(kernel, "prefill", lambda *args: prefilled.append(args[1:]) or prefill(*args))
    for first in (0, 1, 5):
        rounds = list(draw(kernel, requests[first:]))
        assert sum(len(round_.drawn) for round_ in rounds) == 8 * len(requests[first:])
    assert {round_.columns[1] for round_ in rounds} == {64 + BLOCK, 128 + BLOCK}  # the suffix grew on its way
    assert compiled == []
    jax.jit(lambda x: x + len(compiled))(1.0)
    assert compiled  # the listener does hear compilations
    first = [tuple(ids[0, : lengths[0]].tolist()) for ids, lengths, _ in prefilled[: len(requests)]]
    assert sorted(first) == sorted(tuple(request.tokens.tolist()) for request in requests)


def test_slots_are_refilled_and_nothing_waits_for_the_longest_row(policy, tools):
    """64 samples of each prompt over 16 slots: hardly a computed token is lost, where waiting for the longest loses half."""
    requests = tools.prompts_of((12, 9, 16, 5, 7, 11), samples=range(64))
    kernel = policy.kernel(1, 16, max_new_tokens=128)
    kernel.foresee([16])
    rounds = list(draw(kernel, requests))
    lengths = {(d.problem_id, d.sample): len(d.tokens) for round_ in rounds for d in round_.drawn}
    kept = sum(lengths.values())
    assert len(lengths) == 6 * 64 and kept == sum(round_.busy_tokens for round_ in rounds)
    waves = [[lengths[r.problem_id, i] for i in range(start, start + 16)] for r in requests for start in range(0, 64, 16)]
    assert kept / sum(16 * max(wave) for wave in waves) < 0.5
    assert kept / sum(16 * round_.steps for round_ in rounds) > 0.8


def test_idle_groups_take_over_samples_of_the_busiest(policy, tools):
    request = tools.prompts_of([10], samples=range(64))
    kernel = policy.kernel(4, 4)
    kernel.foresee([10])
    drawn = [d for round_ in draw(kernel, request) for d in round_.drawn]
    assert {d.group for d in drawn} == {0, 1, 2, 3} and len(drawn) == 64


def test_a_stop_text_ends_a_row_at_the_token_that_completes_it(policy, tools):
    """Whatever else is in flight: the tokens and log-probabilities kept are the same, and the slot goes on."""

    def stop(tokens):
        found = [i + 2 for i in range(len(tokens) - 1) if tokens[i] < 18 <= tokens[i + 1] < 27]
        return found[0] if found else None

    requests = tools.prompts_of(LENGTHS)
    whole = policy.draw(requests, groups=4, rows=4)
    found = policy.draw(requests, groups=4, rows=4, stop=stop)
    assert found.keys() == whole.keys()
    cut = 0
    for key, drawn in found.items():
        kept = stop(whole[key].tokens)
        cut += kept is not None
        assert drawn.tokens.tolist() == whole[key].tokens[:kept].tolist()
        assert drawn.logprobs.tobytes() == whole[key].logprobs[:kept].tobytes()
        assert drawn.stopped == (kept is not None or whole[key].stopped)
    assert cut > 20


def test_requests_without_samples_bring_nothing(policy, tools):
    assert list(draw(policy.kernel(4, 4), [r._replace(samples=[]) for r in tools.prompts_of(LENGTHS)])) == []


def test_buckets_and_numbers(policy):
    kernel = policy.kernel(4, 4)
    assert [kernel.bucket(n) for n in (1, 15, 16, 17, 32, 33, 64, 65)] == [16, 16, 16, 32, 32, 64, 64, 128]
    numbers = [problem_number(f"math/{i}") for i in range(1000)]
    assert len(set(numbers)) == 1000 and 0 <= min(numbers) and max(numbers) < 2**32
    assert problem_number("math500/0") == 1127491902  # for ever: samples drawn in the past must be drawable again
