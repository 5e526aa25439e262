"""DPO: losses by hand and in NumPy, packing, the reference, pairs by hand, the bandit solved, a killed run, eight devices."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from e2h_jax.algorithms import dpo, rounds
from e2h_jax.algorithms.dpo import LOSSES, pair_example, pair_loss, preference_loss, reference_logprobs, select_pairs
from e2h_jax.algorithms.rounds import Solution
from e2h_jax.data.batches import packed_batches
from e2h_jax.data.records import json_lines
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template
from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.models import store
from e2h_jax.models.attention import packed_causal
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.rules import state_shardings
from e2h_jax.training import loop


def settings(**fields):
    config = dpo.defaults().unlock()
    config.update(fields)
    return config


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0.554355),  # log(1 + e^-0.3)
        ({"label_smoothing": 0.1}, 0.584355),  # 0.9 x 0.554355 + 0.1 x 0.854355
        ({"loss": "ipo"}, 4.0),  # (3 - 5)^2
        ({"loss": "rpo"}, 12.5),  # ((2 - 5)^2 + (-1 + 5)^2) / 2
        ({"beta": 2.0}, math.log1p(math.exp(-6))),
    ],
)
def test_losses_by_hand(fields, expected):
    ratios, wins = jnp.array([[2.0, -1.0]]), jnp.array([[1.0, 0.0]])
    np.testing.assert_allclose(preference_loss(settings(**fields), ratios, wins), [expected], rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("beta", [1e-3, 1e4])
def test_losses_and_gradients_stay_finite_at_the_ends_of_beta(loss, beta):
    value = jax.value_and_grad(lambda ratios: preference_loss(settings(loss=loss, beta=beta), ratios, jnp.ones((3, 2))).sum())
    found, gradient = value(jnp.array([[0.0, 0.0], [-80.0, 50.0], [90.0, -70.0]]))
    assert np.isfinite(found) and np.isfinite(gradient).all()


def halves(rng, count):
    """Random solutions as `language_model_example` makes them."""
    made = []
    for _ in range(count):
        length = rng.integers(4, 9)
        tokens = rng.integers(0, 16, length + 1).astype(np.int32)
        weights = (np.arange(length) >= rng.integers(1, 4)).astype(np.float32)
        positions = np.arange(length, dtype=np.int32)
        made.append({"tokens": tokens[:-1], "targets": tokens[1:], "positions": positions, "loss_weights": weights})
    return made


def pairs_of(rng, count):
    sides = halves(rng, 2 * count)
    pairs = [pair_example(a, b, rng.random(2)) for a, b in zip(sides[::2], sides[1::2], strict=True)]
    return [{**pair, "reference": rng.normal(-1, 1, len(pair["tokens"])).astype(np.float32)} for pair in pairs]


def rows_of(examples, length):
    """One batch of packed rows, weights normalised as the loop does."""
    dataset, count = packed_batches(examples, length=length, batch_size=1, seed=0, epochs=1)
    rows = list(dataset)
    batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return batch | {"pair_weights": batch["pair_weights"] / batch["pair_weights"].sum()}


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("fields", [{}, {"label_smoothing": 0.2}, {"loss": "ipo"}, {"loss": "rpo"}, {"nll": 0.5}])
def test_the_loss_of_packed_pairs_is_that_of_numpy(fields, average):
    rng = np.random.default_rng(5)
    config, examples = settings(beta=0.3, average_logprobs=average, **fields), pairs_of(rng, 7)
    batch = rows_of(examples, 40)
    logprobs = rng.normal(-1, 1, batch["tokens"].shape).astype(np.float32)
    most = int(batch["segment_ids"].max())  # pairs in the fullest row
    loss, metrics = jax.jit(lambda logprobs: pair_loss(config, logprobs, batch, most))(logprobs)

    def log_sigmoid(x):
        return -np.logaddexp(0.0, -x)

    losses, expected = [], []
    for row in range(len(logprobs)):
        for pair in range(1, batch["segment_ids"][row].max() + 1):
            policies, references, chosen_nll, wins = [], [], None, []
            for half in (0, 1):
                here = (batch["segment_ids"][row] == pair) & (batch["half"][row] == half)
                counted = here & (batch["response"][row] > 0)
                policy, reference = (x[row][counted].astype(np.float64) for x in (logprobs, batch["reference"]))
                policies.append(policy.mean() if average else policy.sum())
                references.append(reference.mean() if average else reference.sum())
                chosen_nll = -policy.mean() if half == 0 else chosen_nll
                wins.append(batch["win"][row][here][0])
            ratios = [policy - reference for policy, reference in zip(policies, references, strict=True)]
            h, beta, smoothing = ratios[0] - ratios[1], 0.3, config.label_smoothing
            value = {
                "sigmoid": -(1 - smoothing) * log_sigmoid(beta * h) - smoothing * log_sigmoid(-beta * h),
                "ipo": (h - 1 / (2 * beta)) ** 2,
                "rpo": sum((ratio - (win - 0.5) / beta) ** 2 for ratio, win in zip(ratios, wins, strict=True)) / 2,
            }[config.loss]
            losses.append(value + config.nll * chosen_nll)
            rewards = {"chosen_reward": beta * ratios[0], "rejected_reward": beta * ratios[1], "margin": beta * h}
            better = {"policy_accuracy": policies[0] > policies[1], "reference_accuracy": references[0] > references[1]}
            expected.append({"preference_loss": value, "accuracy": h > 0, "chosen_nll": chosen_nll} | rewards | better)
    assert len(losses) == 7
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-6)
    assert metrics.keys() == expected[0].keys()
    for name, found in metrics.items():
        np.testing.assert_allclose(found, np.mean([pair[name] for pair in expected]), rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_pair_as_an_example_and_its_halves_by_hand():
    chosen, rejected = (
        {"tokens": np.arange(n, n + length), "targets": np.arange(length), "positions": np.arange(length), "loss_weights": w}
        for n, length, w in ((10, 3, [0.0, 1.0, 1.0]), (20, 2, [0.0, 1.0]))
    )
    example = pair_example(chosen, rejected, (0.75, 0.25))
    assert example["tokens"].tolist() == [10, 11, 12, 20, 21] and example["half"].tolist() == [0, 0, 0, 1, 1]
    assert example["positions"].tolist() == example["targets"].tolist() == [0, 1, 2, 0, 1]
    assert example["response"].tolist() == [0, 1, 1, 0, 1]
    assert example["win"].tolist() == [0.75, 0, 0, 0.25, 0] and example["pair_weights"].tolist() == [1, 0, 0, 0, 0]
    assert example["win"].dtype == example["pair_weights"].dtype == np.float32 and example["half"].dtype == np.int32
    batch = {"segment_ids": jnp.array([[1, 1, 2, 2, 0]]), "half": jnp.array([[0, 1, 0, 1, 0]])}
    assert dpo.half_ids(batch).tolist() == [[1, 2, 3, 4, 0]]


def test_a_draw_is_no_hit():
    (pair,) = pairs_of(np.random.default_rng(0), 1)
    batch = rows_of([pair], 20)
    first = (batch["pair_weights"] + batch["win"] > 0).astype(np.float32)  # of each half one token counts
    same = {**batch, "response": first, "reference": 0 * first}
    _, metrics = pair_loss(settings(), np.full(batch["tokens"].shape, -1.0, np.float32), same, 1)
    assert [metrics[name] for name in ("accuracy", "policy_accuracy", "reference_accuracy", "margin")] == [0, 0, 0, 0]


def test_pairs_are_counted():
    pairs = [{"problem": {"id": name, "level": level}} for name, level in (("p", 5), ("p", 5), ("q", 1), ("r", None))]
    expected = {"pairs": 4, "pair_problems": 3, "pairs_level_1": 1, "pairs_level_5": 2}
    assert list(dpo._counts(pairs).items()) == list(expected.items())


@pytest.fixture(scope="module")
def tiny():
    """(graph, params on one device) of a small random policy."""
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    config = LlamaConfig(vocab_size=16, width=32, layers=2, heads=4, kv_heads=4, head_dim=8, mlp_width=64)
    return *store.create("policy", config, mesh, seed=3), mesh


def test_packed_pairs_are_unpacked_pairs_and_padding_gets_no_gradient(tiny):
    graph, params, _ = tiny
    config, examples = settings(beta=0.5, nll=0.1), pairs_of(np.random.default_rng(1), 5)

    def value(params, batch):
        return pair_loss(config, dpo.token_logprobs(nnx.merge(graph, params), batch), batch, 4)[0]

    packed, alone = rows_of(examples, 48), rows_of(examples, 18)
    assert len(packed["tokens"]) < len(alone["tokens"]) == 5
    gradient = jax.jit(jax.value_and_grad(value))
    (loss, grads), (expected, expected_grads) = gradient(params, packed), gradient(params, alone)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, expected_grads)

    # Of what is no solution's token nothing flows back, and what stands there makes no difference.
    logprobs = np.full(packed["tokens"].shape, -1.0, np.float32)
    by_token = np.asarray(jax.grad(lambda x: pair_loss(config, x, packed, 4)[0])(logprobs))
    assert (by_token[packed["response"] == 0] == 0).all() and (by_token[packed["response"] > 0] != 0).all()
    other = packed | {"tokens": np.where(packed["segment_ids"] > 0, packed["tokens"], 7)}
    jax.tree.map(np.testing.assert_array_equal, gradient(params, other), (loss, grads))


def test_the_halves_of_a_pair_do_not_see_each_other_and_the_reference_is_each_solution_alone(tiny):
    graph, params, mesh = tiny
    rng = np.random.default_rng(2)
    sides = halves(rng, 12)
    examples = [pair_example(a, b, (1, 0)) for a, b in zip(sides[::2], sides[1::2], strict=True)]
    found = np.concatenate(reference_logprobs(graph, params, mesh, examples, 40, 2))
    model, direct = nnx.merge(graph, params), []
    for side in sides:
        tokens, positions = side["tokens"][None], side["positions"][None]
        hidden, _ = model(tokens, positions, packed_causal(np.ones_like(tokens)))
        table = np.asarray(jax.nn.log_softmax(hidden @ model.output_matrix()))[0]
        direct.append(np.take_along_axis(table, side["targets"][:, None], axis=1)[:, 0])
    np.testing.assert_allclose(found, np.concatenate(direct), atol=1e-5)


def test_eight_devices_equal_one(tiny, tmp_path):
    graph, values, _ = tiny
    examples, found = pairs_of(np.random.default_rng(4), 24), []
    config = settings(beta=0.5)
    config.train.update({"length": 40, "batch_size": 8, "epochs": 2, "log_every": 1, "microbatches": 2})
    config.train.optimizer.learning_rate = 1e-2
    for shape, devices in (((1, 1, 1), 1), ((2, 2, 2), 8)):
        mesh = make_mesh(shape, jax.devices()[:devices])
        params = jax.tree.map(jnp.copy, jax.device_put(jax.tree.map(np.asarray, values), state_shardings(mesh, values)))
        logprobs = reference_logprobs(graph, params, mesh, examples, 40, 8)
        with_reference = [{**e, "reference": part} for e, part in zip(examples, logprobs, strict=True)]

        def loss_fn(params, batch):
            return pair_loss(config, dpo.token_logprobs(nnx.merge(graph, params), batch), batch, 5)

        train_config = rounds.complete(config.train, seed=0, mesh=shape, init="")
        trained, summary = loop.fit(tmp_path / str(devices), train_config, mesh, params, loss_fn, with_reference)
        found.append((np.concatenate(logprobs), jax.tree.map(np.asarray, trained), summary))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), found[0][1], found[1][1])
    for name in ("loss", "margin", "chosen_reward"):
        np.testing.assert_allclose(found[0][2][name], found[1][2][name], atol=1e-4)


def solution(problem, sample, text, right, score, stopped=True):
    return Solution({"id": problem, "level": None}, sample, text, stopped, right, score)


def paired(solutions, margin=1.0, margin_hidden=0.5, per_problem=3):
    found = select_pairs(solutions, margin, margin_hidden, per_problem)
    return [(pair["problem"]["id"], pair["chosen"]["sample"], pair["rejected"]["sample"]) for pair in found]


def test_pairs_by_hand():
    known = [
        solution("p", 0, "a", True, 0.9),  # 1.9
        solution("p", 1, "b", False, 0.2),  # 0.2
        solution("p", 2, "c", True, 0.5),  # 1.5
        solution("p", 3, "d", False, 0.6),  # 0.6
        solution("p", 4, "a", True, 0.9),  # a text that there is already
        solution("p", 5, "e", True, 0.1),  # 1.1
    ]
    assert paired(known) == [("p", 0, 1)]  # of c and d 0.9 is left, not above 1
    assert paired(known, margin=0.8) == [("p", 0, 1), ("p", 2, 3)]
    assert paired(known, margin=0.8, per_problem=1) == [("p", 0, 1)]
    assert paired(known, margin=0.0, per_problem=0) == [("p", 0, 1), ("p", 2, 3)]  # e is left alone
    hidden = [solution("q", 0, "a", None, 0.9), solution("q", 1, "b", None, 0.3), solution("q", 2, "c", None, 0.5)]
    assert paired(hidden) == [("q", 0, 1)] and paired(hidden, margin_hidden=0.7) == []
    assert paired(hidden, margin_hidden=1.0) == []  # nothing of a hidden answer differs by more
    outcome = [solution("r", 0, "a", True, None), solution("r", 1, "b", False, None), solution("s", 0, "a", None, None)]
    assert paired(outcome, margin=0.5) == [("r", 0, 1)]
    # Every problem gives its pairs, also behind one of which nothing is known.
    assert paired([*outcome[2:], *outcome[:2], *hidden], margin=0.5) == [("r", 0, 1), ("q", 0, 1)]


def test_a_solution_that_did_not_end_is_only_rejected_and_wins_are_shares():
    cut_off, right, wrong = ("a", True, 0.8, False), ("b", True, 0.6), ("c", False, 0.0)
    solutions = [solution("p", sample, *fields) for sample, fields in enumerate((cut_off, right, wrong))]
    (pair,) = select_pairs(solutions, 1.0, 0.5, 3)
    assert pair["chosen"] == {"sample": 1, "text": "b", "stopped": True, "score": 1.6, "win": 0.8}
    assert pair["rejected"]["win"] == 0
    (pair,) = select_pairs([solution("q", 0, "a", None, 0.9), solution("q", 1, "b", None, 0.1, stopped=False)], 1.0, 0.5, 3)
    assert (pair["chosen"]["win"], pair["rejected"]["stopped"]) == (0.9, False)


@pytest.mark.usefixtures("on_one_device")
def test_only_what_ended_by_itself_has_an_end(tmp_path, configured, bandit):
    problem = {"id": "p", "question": "a=1", "answer": "4", "level": 1}
    sides = {name: {"text": "# Answer\n\n4", "stopped": name == "chosen", "win": 0.5} for name in ("chosen", "rejected")}
    write_records(tmp_path / "pairs.jsonl", [{"problem": problem} | sides])
    training = rounds.complete(configured(dpo).train, seed=0, mesh=(1, 1, 1), init=bandit.policy)
    (example,), dropped = dpo._examples(training, tmp_path / "pairs.jsonl", get_template("e2h"))
    eos = load_tokenizer(bandit.policy).eos_token_id
    chosen, rejected = (example["targets"][(example["half"] == half) & (example["response"] > 0)].tolist() for half in (0, 1))
    assert dropped == 0 and chosen == [*rejected, eos]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("dpo")


def parameters(folder):
    params = store.load(folder, make_mesh((1, 1, 1), jax.devices()[:1]), "policy")[2]
    return {path: np.asarray(param[...]) for path, param in nnx.to_flat_state(params)}


@pytest.mark.usefixtures("on_one_device")
def test_the_bandit_is_solved_also_where_answers_are_hidden(runs, configured, chances):
    fields = {"train__epochs": 100, "train__batch_size": 2, "train__optimizer__learning_rate": 1e-2}
    summary = dpo.run(configured(dpo, nll=1.0, margin=0.5, **fields), runs / "solved")
    assert all(chance > 0.9 for chance in chances(runs / "solved" / "model").values())
    assert store.load_reads(runs / "solved" / "model") == {"template": "e2h"}
    assert summary["best_all"] == 1.0 and summary["accuracy"] == 1.0
    pairs = [record for _, record in json_lines(runs / "solved" / "round-1" / "pairs.jsonl")]
    assert {pair["problem"]["level"] for pair in pairs} == {1, 4}
    assert all(pair["chosen"]["text"][-1] == str(int(pair["problem"]["question"][-1]) + 3) for pair in pairs)
    assert summary["reference_seconds"] > 0 and summary["pairs_seconds"] >= 0


@pytest.mark.usefixtures("on_one_device")
def test_with_learning_rate_zero_nothing_moves_and_the_loss_is_log_two(runs, configured, bandit):
    config = configured(dpo, train__optimizer__learning_rate=0.0, train__epochs=1, validation__problems="", margin=0.5)
    summary = dpo.run(config, runs / "still")
    np.testing.assert_allclose(summary["loss"], math.log(2), atol=1e-5)
    np.testing.assert_allclose([summary["margin"], summary["chosen_reward"]], 0, atol=1e-5)
    before, after = parameters(bandit.policy), parameters(runs / "still" / "model")
    assert all(np.array_equal(before[name], after[name]) for name in before)


class Killed(BaseException):
    """What kill -9 leaves behind, without the wait for another process to start."""


@pytest.mark.usefixtures("on_one_device")
def test_a_killed_run_ends_in_the_same_bytes_with_lora_and_the_first_policy_as_reference(runs, configured, monkeypatch):
    fields = {"rounds": 2, "reference": "init", "reference_dtype": "bfloat16", "reference_quantize": "int8", "margin": 0.5}
    config = configured(dpo, train__lora__rank=2, train__checkpoint_every=1, train__epochs=3, **fields)
    dpo.run(config, runs / "whole")
    deaths = []

    def dies_at(module, name, which):
        real = getattr(module, name)

        def function(*arguments, **fields):
            if which(arguments) and which not in deaths:
                deaths.append(which)
                raise Killed
            return real(*arguments, **fields)

        monkeypatch.setattr(module, name, function)

    dies_at(rounds, "write_json", lambda arguments: arguments[0].match("round-1/reference.json"))
    dies_at(loop, "_log", lambda arguments: arguments[2] == 2)
    dies_at(dpo, "write_records", lambda arguments: arguments[0].match("round-2/pairs.jsonl"))
    for _ in range(3):
        with pytest.raises(Killed):
            dpo.run(config, runs / "killed")
    dpo.run(config, runs / "killed")
    files = [path.relative_to(runs / "whole") for path in (runs / "whole").rglob("*.jsonl") if path.name != "metrics.jsonl"]
    files += [f"round-{number}/reference/logprobs.npy" for number in (1, 2)] + ["validation.md"]
    for file in files:
        assert (runs / "whole" / file).read_bytes() == (runs / "killed" / file).read_bytes(), file
    for folder in ("model", "round-2/train/model"):
        expected, found = parameters(runs / "whole" / folder), parameters(runs / "killed" / folder)
        assert all(np.array_equal(found[name], array) for name, array in expected.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "hinge"}, "config.loss='hinge' must be one of sigmoid, ipo, rpo"),
        ({"beta": 0.0}, "config.beta=0.0 must be above 0"),
        ({"label_smoothing": 0.5}, "below one half"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "with config.loss=ipo set it to 0"),
        ({"reference": "last"}, "must be round or init"),
        ({"reference_quantize": "int4"}, "config.reference_quantize='int4'"),
        ({"reference_dtype": "float16"}, "config.reference_dtype='float16'"),
        ({"reward_model": ""}, "config.margin=1.0 leaves no pair"),
        ({"score__template": "e2hh"}, "did you mean \"e2h\""),
        ({"aggregation": "mean_odds"}, "no score in"),
        ({"margin": -1.0}, "must be at least 0"),
        ({"margin": 2.0}, "config.margin=2.0 leaves no pair: scores are at most 2; set it below 2"),
        ({"questions": ""}, "config.questions is empty"),
        ({"train__microbatches": 3}, "^config.train.batch_size=4 does not divide by 3 = config.train.microbatches"),
    ],
)
@pytest.mark.usefixtures("on_one_device")
def test_mistakes_are_told_before_anything_is_drawn(tmp_path, configured, fields, message):
    with pytest.raises(UserError, match=message):
        dpo.run(configured(dpo, **fields), tmp_path)
    assert not (tmp_path / "round-1").exists()


@pytest.mark.usefixtures("on_one_device")
def test_a_pair_that_is_too_long_names_the_fields_of_the_loop(tmp_path, configured):
    fields = {"train__length": 8, "train__too_long": "error", "margin": 0.5, "validation__problems": ""}
    with pytest.raises(UserError, match=r"longer than config\.train\.length=8, .* set config\.train\.too_long=drop"):
        dpo.run(configured(dpo, **fields), tmp_path)


@pytest.mark.usefixtures("on_one_device")
def test_no_pair_is_told(tmp_path, configured):
    with pytest.raises(UserError, match=r"^round-1/pairs: 96 solutions make no pair; lower config.margin.* in another --work"):
        dpo.run(configured(dpo, margin=1.9999, margin_hidden=1.0, validation__problems=""), tmp_path)


@pytest.mark.usefixtures("on_one_device")
def test_what_was_drawn_before_a_refusal_goes_on_in_another_folder(tmp_path, configured):
    fields = {"validation__problems": "", "train__epochs": 1}
    told = r"^round-1: all \d+ pairs are longer than config.train.length=8; raise it, in another --workdir \(copy round-1/sam"
    with pytest.raises(UserError, match=told):
        dpo.run(configured(dpo, train__length=8, **fields), tmp_path / "short")
    for name in ("samples", "scored"):
        shutil.copytree(tmp_path / "short" / "round-1" / name, tmp_path / "long" / "round-1" / name)
    dpo.run(configured(dpo, **fields), tmp_path / "long")
    for part, drawn in (("samples.json", "drawn_now"), ("scored.json", "scored_now")):
        assert [json.loads((tmp_path / run / "round-1" / part).read_text())[drawn] for run in ("short", "long")] == [96, 0]
