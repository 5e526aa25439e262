"""Reward models learn a rule that is easy to state: a step that holds the letter x is wrong."""

import json
import random

import jax
import numpy as np
import pytest
from flax import nnx

from e2h_jax import stage
from e2h_jax.algorithms import reward_model, sft
from e2h_jax.data.steps import encode_solutions
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template
from e2h_jax.data.tokenizer import build_tokenizer, load_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.rewards.scoring import Scorer, plan
from e2h_jax.training import loop

E2H = get_template("e2h")
LETTERS = "abcdex"
PIECES = ("# Question\n\n", "\n\n# Solution\n\n", "# Answer\n\n", "\n\n", "q", *LETTERS)


def one_device():
    return make_mesh((1, 1, 1), jax.devices()[:1])


@pytest.fixture(autouse=True, scope="module")
def train_on_one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", lambda shape, **_: one_device())
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A policy with random weights."""
    folder = tmp_path_factory.mktemp("base") / "model"
    tokenizer = build_tokenizer(PIECES, folder.parent / "tokenizer")
    config = LlamaConfig(len(tokenizer), width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64, unroll=2)
    store.save(folder, "policy", config, store.create("policy", config, one_device(), seed=0)[1], tokenizer)
    return folder


def solutions(count, seed, share=0.25):
    """[steps]: one to four of three letters and an answer of one letter; a share of them holds x, at any place."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        steps = []
        for size in [3] * rng.randint(1, 4) + [1]:
            letters = rng.choices("abcde", k=size)
            if rng.random() < share:
                letters[rng.randrange(size)] = "x"
            steps.append("".join(letters))
        found.append([*steps[:-1], "# Answer\n\n" + steps[-1]])
    return found


def right(step):
    return "x" not in step


def prm(steps, good=1.0, bad=0.0):
    return [good if right(step) else bad for step in steps]


def orm(steps):
    return [float(all(map(right, steps)))] * len(steps)


def train(base, workdir, solutions, labels, **fields):
    """Trains on (steps, labels) and returns (summary, scores(solutions) -> probabilities per step)."""
    records = [
        {"problem_id": None, "question": "q", "prefix": "", "steps": steps, "labels": given}
        for steps, given in zip(solutions, labels, strict=True)
    ]
    write_records(workdir / "labelled.jsonl", records)
    config = reward_model.defaults()
    optimizer = {"learning_rate": 5e-3, "b2": 0.95}
    settings = {"length": 128, "batch_size": 8, "epochs": 3, "label_tokens": "end", "checkpoint_every": 10_000}
    config.update(settings | fields | {"init": str(base), "data": str(workdir / "labelled.jsonl"), "optimizer": optimizer})
    summary = stage.execute("reward", config, workdir / "out")
    return summary, lambda solutions: scores(workdir / "out" / "model", solutions)


def scores(model, solutions):
    graph, _, params = store.load(model, one_device(), "reward")
    texts = ["\n\n".join(steps) for steps in solutions]
    encoded = encode_solutions(load_tokenizer(model), ["q"] * len(texts), texts, E2H, add_eos=False)
    batches = plan(encoded, granularity=64, tokens_per_batch=8192, shards=1)
    found = {}
    for batch in Scorer(graph, params, one_device()).score(encoded, batches, "separator_last"):
        found |= batch
    return [found[index] for index in range(len(texts))]


def parameters(model):
    _, _, params = store.load(model, one_device(), "reward")
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


UNSEEN = solutions(300, seed=1)


def hits(found, wanted):
    return np.mean([(f > 0.5) == (w > 0.5) for f, w in zip(flat(found), flat(wanted), strict=True)])


def flat(nested):
    return [value for values in nested for value in values]


@pytest.fixture(scope="module", params=["all", "end"])
def trained_prm(request, base, tmp_path_factory):
    """(label_tokens, folder, summary, judge) of a PRM."""
    folder, data = tmp_path_factory.mktemp("prm"), solutions(1200, seed=0)
    return request.param, folder, *train(base, folder, data, map(prm, data), label_tokens=request.param)


def test_a_prm_learns_which_steps_are_wrong(trained_prm):
    label_tokens, folder, summary, judge = trained_prm
    assert hits(judge(UNSEEN), map(prm, UNSEEN)) > 0.97  # always "right" would have 0.75
    assert summary["examples"] == 1200 and summary["dropped"] == 0
    metrics = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    # With labels on all tokens, those before the x cannot know.
    assert metrics[-1]["label_loss"] < {"all": 0.35, "end": 0.1}[label_tokens]
    assert metrics[0]["label_loss"] > 0.4 and "lm_loss" not in metrics[0]


def test_a_reward_model_can_be_trained_further(trained_prm, tmp_path):
    label_tokens, folder, *_ = trained_prm
    if label_tokens == "all":
        pytest.skip("once is enough")
    data = solutions(150, seed=2)
    settings = {"epochs": 1, "position_gap": 20, "log_every": 1}
    _, judge = train(folder / "out" / "model", tmp_path, data, map(prm, data), **settings)
    first = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["label_loss"] < 0.2 and hits(judge(UNSEEN), map(prm, UNSEEN)) > 0.97


def test_soft_labels_are_probabilities(base, tmp_path):
    data = solutions(1200, seed=0)
    _, judge = train(base, tmp_path, data, [prm(steps, good=0.9, bad=0.3) for steps in data])
    found, steps = np.array(flat(judge(UNSEEN))), flat(UNSEEN)
    good = np.array([right(step) for step in steps])
    assert found[good].mean() == pytest.approx(0.9, abs=0.03) and found[~good].mean() == pytest.approx(0.3, abs=0.06)
    assert found[good].min() > 0.6 > found[~good].max()


def test_an_orm_learns_the_outcome(base, tmp_path):
    data = solutions(1500, seed=0, share=0.15)
    _, judge = train(base, tmp_path, data, map(orm, data), label_tokens="all", epochs=4)
    unseen = solutions(300, seed=1, share=0.15)
    last = [[values[-1]] for values in judge(unseen)]
    outcomes = [orm(steps)[-1:] for steps in unseen]
    assert 0.4 < np.mean(outcomes) < 0.7
    assert hits(last, outcomes) > 0.95


def test_an_oprm_learns_steps_and_outcomes_from_the_mixture(base, tmp_path):
    """A step that is wrong is wrong in both halves; after it only the outcome half calls the good steps bad."""
    data, rng = solutions(1800, seed=0), random.Random(0)
    _, judge = train(base, tmp_path, data, [rng.choice((prm, orm))(steps) for steps in data], epochs=4)
    found = judge(UNSEEN)
    wrong, clean, after = [], [], []
    for steps, values in zip(UNSEEN, found, strict=True):
        for index, (step, value) in enumerate(zip(steps, values, strict=True)):
            kind = wrong if not right(step) else clean if all(map(right, steps[:index])) else after
            kind.append(value)
    assert np.mean(wrong) < 0.1 and np.mean(after) == pytest.approx(0.5, abs=0.15) and np.mean(clean) > 0.7
    ended = [[values[-1]] for steps, values in zip(UNSEEN, found, strict=True) if all(map(right, steps))]
    assert np.mean(np.array(ended) > 0.8) > 0.95


def test_a_step_without_label_is_not_trained_on(base, tmp_path):
    """Training on [s1, s2, s3] with labels [1, 0, null] cannot tell one third step from another, and does tell labels."""
    rng, runs = random.Random(3), {}
    heads = [["".join(rng.choices(LETTERS, k=3)) for _ in range(2)] for _ in range(60)]
    tails = {name: ["".join(rng.choices(LETTERS, k=3)) for _ in heads] for name in ("one", "other")}
    settings = {"epochs": 1, "label_tokens": "all", "batch_size": 2}  # several steps: the first moves the zero head only
    for name, tail, last in (("one", "one", None), ("other", "other", None), ("labelled", "other", 0.0)):
        (tmp_path / name).mkdir()
        data = [[*head, third] for head, third in zip(heads, tails[tail], strict=True)]
        train(base, tmp_path / name, data, [[*prm(head), last] for head in heads], **settings)
        runs[name] = parameters(tmp_path / name / "out" / "model")
    start = parameters(base)
    for name, value in runs["one"].items():
        np.testing.assert_array_equal(value, runs["other"][name], err_msg=name)
        if "lm_head" in name:  # no auxiliary loss: nothing moves it
            np.testing.assert_array_equal(value, start[name])
            np.testing.assert_array_equal(value, runs["labelled"][name])
        elif "embedding" not in name:
            assert not np.array_equal(value, start[name]), name
            assert not np.array_equal(value, runs["labelled"][name]), name


def test_records_with_null_labels_only_are_refused(base, tmp_path):
    with pytest.raises(UserError, match=r"no label to train on"):
        train(base, tmp_path, [["abc", "dxe"]] * 8, [[None, None]] * 8)


def test_the_auxiliary_loss_trains_the_language_model(base, tmp_path):
    data = [["abc", "cde", "# Answer\n\na"], ["bcd", "# Answer\n\nb"]] * 150
    summary, judge = train(base, tmp_path, data, map(prm, data), lm_loss=1.0, log_every=1)
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["lm_loss"] > 2.0 > 1.0 > metrics[-1]["lm_loss"]
    assert metrics[-1]["loss"] == pytest.approx(metrics[-1]["label_loss"] + metrics[-1]["lm_loss"], rel=1e-5)
    (name,) = (name for name in parameters(base) if "lm_head" in name)
    assert not np.array_equal(parameters(base)[name], parameters(tmp_path / "out" / "model")[name])
    assert summary["tokens"] > 0 and min(flat(judge(data[:2]))) > 0.5


def trained_language(base, tmp_path, monkeypatch, records, **fields):
    """Of each record, the texts of the tokens that the auxiliary loss trains on, with their weights."""
    found = []

    def fit(workdir, config, mesh, params, loss_fn, examples, frozen):
        tokenizer = load_tokenizer(base)
        for example in examples:
            targets = zip(example["targets"].tolist(), example["loss_weights"].tolist(), strict=True)
            found.append([(tokenizer.decode([token]), weight) for token, weight in targets if weight])
        raise UserError("enough")

    monkeypatch.setattr(reward_model.loop, "fit", fit)
    write_records(tmp_path / "labelled.jsonl", [{"problem_id": None, "question": "q", "prefix": ""} | r for r in records])
    config = reward_model.defaults()
    config.update({"init": str(base), "data": str(tmp_path / "labelled.jsonl"), "lm_loss": 1.0, "batch_size": 8} | fields)
    with pytest.raises(UserError, match="enough"):
        reward_model.run(config, tmp_path / "out")
    return found


def test_what_the_auxiliary_loss_trains(base, tmp_path, monkeypatch):
    """Not the end of what does not end, no prefix, and no step labelled wrong unless it is given a weight."""
    gap, end, header = ("\n\n", 1.0), ("</s>", 1.0), ("# Answer\n\n", 1.0)
    answer = "# Answer\n\nd"
    records = [
        {"steps": ["a", answer], "labels": [1.0, 1.0]},
        {"steps": ["a", "b"], "labels": [1.0, None]},
        {"steps": ["a", "b"], "labels": [1.0, None], "eos": True},
        {"steps": ["a", answer], "labels": [1.0, 1.0], "eos": False},
        {"steps": ["a", answer], "labels": [1.0, 0.0]},
        {"steps": ["c", "b"], "labels": [0.0, 0.5], "prefix": "a\n\ne"},
        {"steps": ["c"], "labels": [0.0], "eos": True},
    ]
    found = trained_language(base, tmp_path, monkeypatch, records)
    assert found == [
        [("a", 1.0), gap, header, ("d", 1.0), end],
        [("a", 1.0), gap, ("b", 1.0), gap],
        [("a", 1.0), gap, ("b", 1.0), gap, end],
        [("a", 1.0), gap, header, ("d", 1.0)],
        [("a", 1.0), gap],
        [("b", 1.0), gap],
        [],
    ]
    half = trained_language(base, tmp_path, monkeypatch, records, lm_wrong=0.5)
    assert half[:4] == found[:4]
    assert half[4:] == [
        [("a", 1.0), gap, ("# Answer\n\n", 0.5), ("d", 0.5), ("</s>", 0.5)],
        [("c", 0.5), ("\n\n", 0.5), ("b", 1.0), gap],
        [("c", 0.5), ("\n\n", 0.5), ("</s>", 0.5)],
    ]


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"label_tokens": "ends"}, r"label_tokens='ends' must be all or end"),
        ({"levels": (2,)}, r"no problem has level 2"),
        ({"length": 4, "too_long": "error"}, r"examples are longer than config\.length=4"),
        ({"length": 4}, r"no training example is left"),
        ({"position_gap": -1}, r"config\.position_gap"),
        ({"lm_wrong": -0.1}, r"config\.lm_wrong=-0\.1 must be a weight from 0 to 1"),
        ({"lm_wrong": 0.5}, r"config\.lm_wrong=0\.5 does nothing with config\.lm_loss=0"),
        ({"lm_loss": -0.3}, r"config\.lm_loss=-0\.3 must be at least 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_in_a_sentence(base, tmp_path, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        train(base, tmp_path, [["abc"]], [[1.0]], **fields)


@pytest.mark.parametrize("module", [sft, reward_model])
def test_a_negative_seed_is_told_before_any_file_is_read(module):
    config = module.defaults().unlock()
    config.update({"init": "not/there/yet", "seed": -1})
    with pytest.raises(UserError, match="config.seed=-1 must be at least 0"):
        module.check_values(config)


def test_the_score_head_starts_at_one_half(base):
    graph, _, params = store.load(base, one_device(), "reward")
    model = nnx.merge(graph, params)
    assert float(jax.nn.sigmoid(model.scores(np.ones((3, 32), np.float32)))[0]) == 0.5
