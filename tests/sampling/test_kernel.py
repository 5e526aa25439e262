"""The device kernel against plain full forward passes."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import chisquare

from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.sampling.choose import Settings
from e2h_jax.sampling.kernel import Kernel, suffix_sizes
from e2h_jax.sampling.scheduler import Request

VOCABULARY = 36
LENGTHS = (1, 2, 5, 9, 15, 16)  # one bucket of 16
RESTRICTED = {"temperature": 0.6, "top_k": 12, "top_p": 0.95}


def naive_greedy(policy, prompts, new, eos):
    """argmax of a full forward pass, token after token; None for a row that has stopped."""
    rows, stopped = [prompt.tolist() for prompt in prompts], [False] * len(prompts)
    for _ in range(new):
        for row, logits, done in zip(rows, policy.logits([np.array(row) for row in rows]), list(stopped), strict=True):
            if not done:
                row.append(int(logits[-1].argmax()))
        stopped = [s or row[-1] == eos for s, row in zip(stopped, rows, strict=True)]
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


@pytest.mark.parametrize("shape", ["grouped", "one_kv_head", "ungrouped"])
def test_greedy_decoding_is_the_argmax_of_full_forward_passes(tools, shape):
    policy = tools.policy(shape)
    requests = tools.prompts_of(LENGTHS, samples=[0])
    # An EOS that some rows draw on their way and others never.
    expected = naive_greedy(policy, [r.tokens for r in requests], 24, eos=-1)
    eos = expected[0][7]
    expected = [row[: row.index(eos) + 1] if eos in row else row for row in expected]
    assert {len(row) < 24 for row in expected} == {True, False}

    found = policy.draw(requests, groups=3, rows=1, end_ids=(eos,), temperature=0)
    assert [found[r.problem_id, 0].tokens.tolist() for r in requests] == expected
    assert [found[r.problem_id, 0].stopped for r in requests] == [row[-1] == eos for row in expected]
    assert not any(drawn.sampling_logprobs.any() for drawn in found.values())


@pytest.mark.parametrize("fields", [{"window": 5}, {"window": 9, "window_from": 1}, {"tie_embeddings": True, "qkv_bias": True}])
def test_greedy_decoding_of_other_families(tools, fields):
    policy = tools.policy(**fields)
    requests = tools.prompts_of((3, 12, 30), samples=[0])
    expected = naive_greedy(policy, [r.tokens for r in requests], 40, eos=-1)
    found = policy.draw(requests, groups=2, rows=1, end_ids=(99,), temperature=0, max_new_tokens=40)
    assert [found[r.problem_id, 0].tokens.tolist() for r in requests] == expected


def test_logprobs_are_those_of_a_full_forward_pass(policy, tools):
    """Each token's own, at temperature one; and that of the distribution it was drawn from."""
    requests = tools.prompts_of(LENGTHS)
    found = policy.draw(requests, groups=6, rows=8, **RESTRICTED)
    assert {d.stopped for d in found.values()} == {True, False}
    prompts = {r.problem_id: r.tokens for r in requests}
    rows = [np.array([*prompts[d.problem_id], *d.tokens]) for d in found.values()]
    for drawn, row, logits in zip(found.values(), rows, policy.logits(rows), strict=True):
        start = len(prompts[drawn.problem_id])
        logits, tokens = logits[start - 1 : -1].astype(np.float64), row[start:]
        at = np.arange(len(tokens))
        np.testing.assert_allclose(drawn.logprobs, log_softmax(logits, axis=-1)[at, tokens], atol=1e-4)
        tempered = logits / 0.6
        better = (tempered > tempered[at, tokens][:, None]).sum(-1)
        assert better.max() < 12  # every token is one that top-k allows
        ordered = np.sort(tempered, axis=-1)[:, ::-1][:, :12]
        p = softmax(ordered, axis=-1)
        left = np.cumsum(p, axis=-1) - p < 0.95
        share = np.exp(tempered[at, tokens] - ordered[:, 0]) / (np.exp(ordered - ordered[:, :1]) * left).sum(-1)
        np.testing.assert_allclose(drawn.sampling_logprobs, np.log(share), atol=1e-4)


def test_a_row_ends_at_eos_or_at_the_limit(policy, tools):
    requests = tools.prompts_of(LENGTHS)
    found = policy.draw(requests, groups=6, rows=8, **RESTRICTED)
    for drawn in found.values():
        assert tools.eos not in drawn.tokens[:-1].tolist()
        assert drawn.stopped == (drawn.tokens[-1] == tools.eos) and (drawn.stopped or len(drawn.tokens) == 24)
        assert len(drawn.tokens) == len(drawn.logprobs) == len(drawn.sampling_logprobs)
    # EOS drawn as the very last token is a stop; the token before it is none.
    key, row = next((key, d) for key, d in found.items() if d.stopped and 2 < len(d.tokens) < 24)
    last = len(row.tokens)
    for limit, stopped in ((last, True), (last - 1, False)):
        again = policy.draw(requests, groups=6, rows=8, **RESTRICTED | {"max_new_tokens": limit})
        assert again[key].stopped == stopped and again[key].tokens.tolist() == row.tokens[:limit].tolist()
        assert max(len(d.tokens) for d in again.values()) == limit


def test_any_of_several_end_tokens_ends_a_row(policy, tools):
    requests = tools.prompts_of(LENGTHS)
    found = policy.draw(requests, groups=6, rows=8, end_ids=(tools.eos, 7, 9))
    ends = [d.tokens[-1] for d in found.values() if d.stopped]
    assert set(ends) == {tools.eos, 7, 9}
    assert not any({tools.eos, 7, 9} & set(d.tokens[:-1].tolist()) for d in found.values())


def test_a_program_that_was_not_compiled_is_an_error(policy):
    kernel = policy.kernel(6, 8, **RESTRICTED)
    with pytest.raises(KeyError):
        kernel.prefill(0, np.zeros((1, 256), np.int32), np.ones(1, np.int32), np.zeros(6, bool))


def test_few_rows_have_few_chunks():
    assert suffix_sizes(1024, 8) == [64, 64, 64, 64, 256, 512]
    assert suffix_sizes(1024, 3) == [128, 128, 128, 128, 512]
    assert suffix_sizes(1024, 1) == [512, 512]
    assert suffix_sizes(21, 1) == [24]


def test_no_program_sorts_the_vocabulary(policy, tools):
    kernel = policy.kernel(6, 8, **RESTRICTED)
    kernel.foresee(LENGTHS)
    kernel.compile()
    texts = [program.as_text() for program in kernel.programs.values()]
    assert any("TopK" in text for text in texts)
    assert not any(tools.sorts(text, VOCABULARY) for text in texts)


def test_pairs_of_tokens_have_the_restricted_models_frequencies(policy):
    """Both tokens at once: also a random stream that repeats itself from token to token would show."""
    prompt, count, settings = np.array([5, 9, 30, 11], np.int32), 6000, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}

    def distribution(row):
        tempered = policy.logits([row])[0][-1].astype(np.float64) / 0.7
        order = np.argsort(-tempered)[:5]
        p = softmax(tempered[order])
        kept = order[: int(np.searchsorted(np.cumsum(p), 0.9)) + 1]  # the smallest set that holds 0.9
        return dict(zip(kept.tolist(), softmax(tempered[kept]), strict=True))

    expected = {(a, b): p * q for a, p in distribution(prompt).items() for b, q in distribution(np.append(prompt, a)).items()}
    assert len(expected) >= 8
    eos = min(set(range(36)) - {token for pair in expected for token in pair})
    requests = [Request("p", prompt, range(count))]
    found = policy.draw(requests, groups=1, rows=500, end_ids=(eos,), max_new_tokens=2, seed=11, **settings)
    observed = dict.fromkeys(expected, 0)
    for drawn in found.values():
        observed[tuple(drawn.tokens.tolist())] += 1  # KeyError: a pair that the restriction excludes
    assert sum(observed.values()) == count
    expected_counts = [count * p for p in expected.values()]
    assert min(expected_counts) > 5
    assert chisquare(list(observed.values()), expected_counts).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 2)], ids=str)
def test_caches_grow_in_place_and_prompts_are_kept_once(shape):
    """A program over twice the suffix needs hardly more temporary memory: it holds no copy of it, of all layers or of one."""
    config = LlamaConfig(VOCABULARY, width=32, layers=3, heads=4, kv_heads=2, head_dim=16, mlp_width=48, max_length=2048)
    devices = int(np.prod(shape))
    mesh, rows = make_mesh(shape, jax.devices()[:devices]), 8
    graph, params = store.create("policy", config, mesh, seed=3)
    settings = Settings(128, (2,))
    kernel = Kernel(graph, config, params, mesh, groups=8, rows=rows, seed=1, settings=settings, prompt_bucket=512)
    kernel.foresee([512])
    kernel.compile()
    column = 3 * 2 * 2 * 16 * 4  # layers, keys and values, heads, head size, bytes
    prefill = kernel.programs["prefill", 512].memory_analysis()
    # A place of 8 groups holds 512 columns each, whatever the number of rows; and the logits of both places' next tokens.
    assert prefill.alias_size_in_bytes == (8 * 512 * column + 2 * 8 * VOCABULARY * 4) / devices
    less, more = (kernel.programs["decode", 1, pieces].memory_analysis() for pieces in (1, 2))
    added = 64 * 8 * rows * column / devices
    assert more.alias_size_in_bytes - less.alias_size_in_bytes == added
    # The scores of the new columns, and little else. (Of several devices, XLA's CPU backend copies once a block.)
    assert more.temp_size_in_bytes - less.temp_size_in_bytes < added * (1 / 8 if devices == 1 else 1.1)
