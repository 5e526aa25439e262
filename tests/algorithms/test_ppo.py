"""PPO end to end on a bandit: one question, two answers that the policy gives alike often, one of them right.

The optimum is known: always the right one, and always ended by EOS. Every kind of advantage gets there; a run that is cut goes
on to the bit; nothing compiles after the first step; what the sampler drew the trainer finds as likely.
"""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from e2h_jax.algorithms import ppo, sft
from e2h_jax.data.arithmetic import PIECES
from e2h_jax.data.storage import write_records
from e2h_jax.data.tokenizer import build_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh

QUESTIONS = ("a=1", "b=2", "c=3", "d=4")
RIGHT, WRONG = "# Answer\n\n3", "# Answer\n\n5"


def one_device(shape=None):
    return make_mesh((1, 1, 1), jax.devices()[:1])


def problem(number, **fields):
    record = {"id": str(number), "question": QUESTIONS[number], "answer": "3", "level": 1, "subject": None, "solution": None}
    return record | fields


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy that answers 3 or 5 by chance, the questions, and a fresh reward model."""
    folder = tmp_path_factory.mktemp("ppo")
    tokenizer = build_tokenizer(PIECES, folder / "tokenizer")
    shape = LlamaConfig(len(tokenizer), width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64, max_length=64)
    rng, abstract = np.random.default_rng(0), store.abstract("policy", shape)[1]
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), abstract)
    store.save(folder / "random", "policy", shape, params, tokenizer)
    solved = [problem(n, id=f"{n}/{text[-1]}", solution=text) for n in range(4) for text in (RIGHT, WRONG)]
    write_records(folder / "solved.jsonl", solved)
    write_records(folder / "questions.jsonl", [problem(n) for n in range(4)])
    config = sft.defaults().unlock()
    config.update(init=str(folder / "random"), data=str(folder / "solved.jsonl"), length=32, batch_size=2, epochs=120)
    config.optimizer.learning_rate = 1e-2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "make_mesh", one_device)
        sft.run(config, folder / "sft")
    reward_model = store.load(folder / "sft" / "model", one_device(), "reward")
    params = reward_model[2]
    params["score_head"][...] = jax.numpy.asarray(rng.normal(0, 1, shape.width).astype(np.float32))
    store.save(folder / "reward", "reward", reward_model[1], params, tokenizer, {"template": "e2h", "read_at": "last_token"})
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch, request):
    """One device, unless a test is about more: an eighth of the compiling."""
    if "eight" not in request.node.name:
        monkeypatch.setattr(ppo, "make_mesh", one_device)


def config_of(folder, **fields):
    config = ppo.defaults().unlock()
    config.update(init=str(folder / "sft" / "model"), questions=str(folder / "questions.jsonl"), steps=12)
    config.update(questions_per_step=4, minibatches=2, length=32, forward_rows=8, update_rows=8, checkpoint_every=3)
    config.sample.update({"samples": 8, "max_new_tokens": 6, "temperature": 1.0, "rows": 32, "prompt_bucket": 16})
    config.reward.update({"process": "none", "grade_workers": 1})
    config.validation.update({"problems": str(folder / "questions.jsonl"), "every": 5, "shown": 1})
    for optimizer in (config.optimizer, config.value_optimizer):
        optimizer.learning_rate = 1e-2
    for name, value in fields.items():
        group, _, field = name.rpartition("__")
        (config[group] if group else config)[field] = value
    return config.lock()


def metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "rollout_tokens_per_second")
    return [{k: v for k, v in line.items() if k not in clock and not k.startswith("seconds/")} for line in lines]


def parameters(folder):
    params = store.load(folder, one_device(), "policy")[2]
    return {".".join(map(str, path)): np.asarray(param[...]) for path, param in nnx.to_flat_state(params)}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(folder):
    """An uninterrupted run, and the compilations that it needed."""
    compiled, step_began = [], []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    questions_of = ppo.questions_of
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ppo, "make_mesh", one_device)
            patch.setattr(ppo, "questions_of", lambda *some: (step_began.append(len(compiled)), questions_of(*some))[1])
            summary = ppo.run(config_of(folder), folder / "whole")
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return folder / "whole", summary, compiled, step_began


def test_the_bandit_is_solved(folder, whole):
    workdir, summary, *_ = whole
    logged = metrics(workdir)
    assert 0.2 < logged[1]["reward/accuracy"] < 0.8
    assert logged[-1]["reward/accuracy"] > 0.95 and logged[-1]["stopped"] == 1.0
    assert summary["best/all"] == 1.0
    assert (workdir / "model" / "model.json").exists() and not (workdir / "best").exists()
    assert [json.loads(line)["step"] for line in open(workdir / "validation.jsonl")] == [0, 5, 10, 12]


def test_sampler_and_trainer_agree(whole):
    differences = [line["sampler_trainer_difference"] for line in metrics(whole[0])[1:]]
    assert max(differences) < 1e-4


def test_nothing_compiles_after_the_first_step(whole):
    _, _, compiled, step_began = whole
    assert step_began[0] > 0 and len(step_began) == 12
    assert len(compiled) == step_began[1]


def test_a_cut_run_goes_on_to_the_bit(folder, whole, monkeypatch):
    workdir, learn = folder / "cut", ppo.learn

    def dies(experience, models, config, step):
        if step == 8:  # between the checkpoint of step 6 and that of step 9
            raise RuntimeError("killed")
        return learn(experience, models, config, step)

    monkeypatch.setattr(ppo, "learn", dies)
    with pytest.raises(RuntimeError, match="killed"):
        ppo.run(config_of(folder), workdir)
    monkeypatch.setattr(ppo, "learn", learn)
    ppo.run(config_of(folder), workdir)
    assert metrics(workdir) == metrics(whole[0])
    assert (workdir / "validation.jsonl").read_bytes() == (whole[0] / "validation.jsonl").read_bytes()
    assert_same(parameters(workdir / "model"), parameters(whole[0] / "model"))


def test_group_advantages_solve_it_too(folder):
    grpo = {"advantage": "grpo", "kl__place": "loss", "kl__estimator": "k3", "loss_mean": "sequences"}
    ppo.run(config_of(folder, whiten_rewards="none", whiten_advantages="none", steps=8, **grpo), folder / "grpo")
    logged = metrics(folder / "grpo")
    assert logged[-1]["reward/accuracy"] > 0.95
    assert "value_loss" not in logged[-1]


def test_an_endless_penalty_keeps_the_policy(folder, whole):
    # The task pulls as in `whole`, but leaving the reference costs more than anything it pays.
    config = config_of(folder, kl__coef=1e4, kl__estimator="k2", kl__place="loss", optimizer__clip_norm=0.0, steps=8)
    config.unlock().optimizer.learning_rate = 3e-4
    ppo.run(config, folder / "kept")
    assert abs(metrics(folder / "kept")[-1]["kl"]) < 0.02
    assert metrics(whole[0])[-1]["kl"] > 0.3


def test_lora_has_its_reference_in_the_base(folder):
    config = config_of(folder, lora__rank=4, lora__alpha=8.0, steps=12, kl__coef=0.05)
    config.unlock().optimizer.learning_rate = 3e-2
    ppo.run(config, folder / "lora")
    logged = metrics(folder / "lora")
    assert abs(logged[1]["kl"]) < 1e-5  # before the first update the policy is the reference
    assert logged[-1]["kl"] > 0.2 and logged[-1]["reward/accuracy"] > 0.9
    assert (folder / "lora" / "adapter" / "adapter_model.safetensors").exists()


def test_process_rewards_and_their_parts(folder):
    config = config_of(folder, steps=2, value_warmup=1, stop_kl=1e9, target_kl=1e9)
    config.unlock().reward.update({"process": "min", "model": str(folder / "reward"), "row_length": 64, "tokens_per_batch": 512})
    config.entropy.update({"loss_coef": 0.01, "reward_coef": 0.01})
    config.kl.update({"target": 0.1, "horizon": 100})
    ppo.run(config, folder / "process")
    logged = metrics(folder / "process")[1:]
    for line in logged:
        parts = sum(line[f"reward/{name}"] for name in ("outcome", "process", "bonus", "format", "length"))
        assert line["reward"] == pytest.approx(parts, abs=1e-5)
        assert -0.5 <= line["reward/process"] <= 0
    assert "loss" not in logged[0] and "loss" in logged[1]  # the value model's warm-up
    assert logged[1]["kl_coef"] < logged[0]["kl_coef"]  # nearer than its target


def test_eight_devices_are_one(folder, whole):
    config = config_of(folder, mesh=(2, 2, 2), steps=2)
    ppo.run(config, folder / "mesh")
    for many, one in zip(metrics(folder / "mesh")[1:], metrics(whole[0])[1:3], strict=True):
        for name in ("reward", "kl", "entropy", "value_loss", "loss", "grad_norm"):
            assert many[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init": ""}, "config.init is empty"),
        ({"advantage": "gea"}, 'gea.*did you mean "gae"'),
        ({"advantage": "grpo", "sample__samples": 1}, "config.sample.samples"),
        ({"questions_per_step": 5}, "holds 4 questions"),
        ({"sample__temperature": 0.0, "sample__samples": 1}, "explores nothing"),
        ({"kl__target": 0.1, "kl__coef": 0.0}, "config.kl.target"),
        ({"stop_kl": 1.0, "kl__coef": 0.0}, "config.stop_kl"),
        ({"length": 8}, "config.length=8"),
        ({"minibatches": 33}, "config.minibatches=33"),
        ({"reward__process": "min"}, "config.reward.model is empty"),
    ],
)
def test_mistakes(folder, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        ppo.run(config_of(folder, **fields), tmp_path)
