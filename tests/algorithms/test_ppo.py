"""PPO end to end on the bandit of conftest.py: four questions, seven answers each, rewarded by the right answer.

The optimum is known: always the right one. Every kind of advantage gets there; a run that is cut goes on to the bit; nothing
compiles after the first step; what the sampler drew the trainer finds as likely.
"""

import json
import os
import signal
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from flax import nnx

from e2h_jax.algorithms import ppo, presets
from e2h_jax.data.records import read_many
from e2h_jax.data.storage import write_records
from e2h_jax.errors import UserError
from e2h_jax.models import store
from e2h_jax.parallel.mesh import make_mesh


def one_device(shape=None, **_):
    return make_mesh((1, 1, 1), jax.devices()[:1])


@pytest.fixture(autouse=True)
def small(monkeypatch, request):
    """One device, unless a test is about more: an eighth of the compiling."""
    if "eight" not in request.node.name:
        monkeypatch.setattr(ppo, "make_mesh", one_device)


def config_of(bandit, preset=presets.ppo, **fields):
    config = ppo.defaults().unlock()
    config.update(preset())
    config.update(init=bandit.policy, questions=bandit.validation, steps=20, questions_per_step=4)
    config.update(minibatches=8, length=32, forward_rows=8, update_rows=8, checkpoint_every=3)
    config.sample.update({"samples": 32, "max_new_tokens": 6, "temperature": 1.0, "rows": 64, "prompt_bucket": 16})
    config.reward.update({"process": "none", "grade_workers": 1})
    config.kl.coef = 1e-3
    config.validation.update({"problems": bandit.validation, "every": 5, "shown": 1})
    config.optimizer.learning_rate = 5e-3
    if preset is presets.ppo:
        config.value_init, config.value_optimizer.learning_rate = bandit.policy, 1e-2
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
def whole(bandit, tmp_path_factory):
    """An uninterrupted run, and the compilations that it needed."""
    workdir, compiled, step_began = tmp_path_factory.mktemp("ppo"), [], []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    questions_of = ppo.questions_of
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ppo, "make_mesh", one_device)
            patch.setattr(ppo, "questions_of", lambda *some: (step_began.append(len(compiled)), questions_of(*some))[1])
            summary = ppo.run(config_of(bandit), workdir)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return workdir, summary, compiled, step_began


def test_the_bandit_is_solved(whole, bandit, chances):
    workdir, summary, *_ = whole
    assert all(0.05 < chance < 0.3 for chance in chances(bandit.policy).values())
    assert all(chance > 0.5 for chance in chances(workdir / "model").values())  # the first step that solved all greedily
    assert metrics(workdir)[-1]["reward/accuracy"] > 0.9
    assert summary["start/all"] < 1 and summary["best/all"] == 1.0
    assert not (workdir / "best").exists() and store.load_reads(workdir / "model") == {"template": "e2h"}
    assert [json.loads(line)["step"] for line in open(workdir / "validation.jsonl")] == [0, 5, 10, 15, 20]


def test_sampler_and_trainer_agree(whole):
    differences = [line["sampler_trainer_difference"] for line in metrics(whole[0])[1:]]
    assert max(differences) < 1e-4


def test_nothing_compiles_after_the_first_step(whole):
    _, _, compiled, step_began = whole
    assert step_began[0] > 0 and len(step_began) == 20
    assert len(compiled) == step_began[1]


def test_a_cut_run_goes_on_to_the_bit(bandit, whole, monkeypatch, tmp_path):
    workdir, learn = tmp_path, ppo.learn

    def dies(experience, models, config, step):
        if step == 8:  # between the checkpoint of step 6 and that of step 9
            raise RuntimeError("killed")
        return learn(experience, models, config, step)

    monkeypatch.setattr(ppo, "learn", dies)
    with pytest.raises(RuntimeError, match="killed"):
        ppo.run(config_of(bandit), workdir)
    monkeypatch.setattr(ppo, "learn", learn)
    ppo.run(config_of(bandit), workdir)
    assert metrics(workdir) == metrics(whole[0])
    assert (workdir / "validation.jsonl").read_bytes() == (whole[0] / "validation.jsonl").read_bytes()
    assert_same(parameters(workdir / "model"), parameters(whole[0] / "model"))


def test_the_published_model_is_the_one_that_the_summary_names(bandit, monkeypatch, tmp_path):
    """Killed after a better model was kept and before the next checkpoint; graded anew, that step is no better."""
    config = config_of(bandit, steps=4, checkpoint_every=2, validation__every=1)
    graded = {}
    record, learn = ppo.validation.Validation.record, ppo.learn

    def recorded(self, step, texts):
        record(self, step, texts)
        return self.history[-1]["accuracy"].update(all=graded[step]) or self.history[-1]["accuracy"]

    def dies(experience, models, config, step):
        if step == 4:
            raise RuntimeError("killed")
        return learn(experience, models, config, step)

    monkeypatch.setattr(ppo.validation.Validation, "record", recorded)
    graded |= {0: 0.0, 1: 0.5, 2: 0.4, 3: 0.9}
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(ppo, "learn", dies)
        ppo.run(config, tmp_path)
    first = parameters(tmp_path / "best" / "1" / "model")
    graded |= {3: 0.2, 4: 0.3}
    summary = ppo.run(config, tmp_path)
    assert (summary["best_step"], summary["best/all"]) == (1, 0.5)
    assert_same(parameters(tmp_path / "model"), first)


def test_told_to_stop_while_it_draws_it_saves_the_step_before(bandit, whole, monkeypatch, tmp_path):
    asked, begun, questions_of = [], [], ppo.questions_of

    @contextmanager
    def told():
        yield lambda last=False: asked.append(last) or (signal.SIGTERM if len(begun) == 4 else None)

    with monkeypatch.context() as patch:
        patch.setattr(ppo, "interrupts", told)
        patch.setattr(ppo, "questions_of", lambda *some: (begun.append(len(asked)), questions_of(*some))[1])
        with pytest.raises(SystemExit) as stopped:
            ppo.run(config_of(bandit, checkpoint_every=100), tmp_path)
    assert stopped.value.code == 143
    assert asked[begun[3] :] == [False, True]  # after the fourth step's first dispatch, and at the end
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert metrics(tmp_path)[-1]["step"] == 3
    ppo.run(config_of(bandit, checkpoint_every=100), tmp_path)
    assert metrics(tmp_path) == metrics(whole[0])
    assert_same(parameters(tmp_path / "model"), parameters(whole[0] / "model"))


def test_told_to_stop_before_the_updates_it_gives_the_step_up(bandit, monkeypatch, tmp_path):
    """While the judge is at work on step 2, then during step 3's forward passes; the KL coefficient has not moved on either."""
    config = config_of(bandit, steps=3, kl__target=0.1, kl__horizon=100, checkpoint_every=100, validation__problems="")
    ppo.run(config, tmp_path / "whole")
    logged = metrics(tmp_path / "whole")
    assert [line["step"] for line in logged] == [1, 2, 3]  # nothing is known of step 0
    assert len({line["kl_coef"] for line in logged}) == 3  # it adapts

    def told_in(module, name, call):
        """Sends SIGTERM to this process within that call of a function; nothing may be learnt after it."""
        function, count = getattr(module, name), []

        def telling(*arguments):
            count.append(name)
            if len(count) == call:
                os.kill(os.getpid(), signal.SIGTERM)
                patch.setattr(ppo, "learn", None)
            return function(*arguments)

        patch.setattr(module, name, telling)

    for where, saved in (((ppo.judge.Judge, "__call__", 2), 1), ((ppo, "make_experience", 2), 2)):
        with monkeypatch.context() as patch:
            told_in(*where)
            with pytest.raises(SystemExit) as stopped:
                ppo.run(config, tmp_path / "cut")
        assert stopped.value.code == 143
        assert max(int(path.name) for path in (tmp_path / "cut" / "checkpoints").iterdir()) == saved
        assert metrics(tmp_path / "cut")[-1]["step"] == saved
    ppo.run(config, tmp_path / "cut")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert_same(parameters(tmp_path / "cut" / "model"), parameters(tmp_path / "whole" / "model"))


def test_the_rollouts_of_a_step_that_is_not_finite_are_kept(bandit, monkeypatch, tmp_path):
    learn = ppo.learn

    def breaks(experience, models, config, step):
        return learn(experience, models, config, step) | ({"value_loss": float("nan")} if step == 5 else {})

    monkeypatch.setattr(ppo, "learn", breaks)
    told = r"the value loss is nan at step 5; lower config.value_optimizer.learning_rate .* is kept in (\S+)nan/step-5.npz"
    with pytest.raises(UserError, match=told):
        ppo.run(config_of(bandit), tmp_path)
    kept, records = np.load(tmp_path / "nan" / "step-5.npz"), [*map(json.loads, open(tmp_path / "nan" / "step-5.jsonl"))]
    assert len(records) == 4 * 32 == len(kept["advantages"]) and records[0].keys() == {"problem_id", "sample", "text"}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert metrics(tmp_path)[-1]["step"] == 4


def test_group_advantages_solve_it_too(bandit, tmp_path):
    # Not seed 0: there one question's right answers nearly die out, a group without any teaches nothing, and rounding decides.
    summary = ppo.run(config_of(bandit, presets.grpo, seed=1), tmp_path)
    logged = metrics(tmp_path)
    assert summary["best/all"] == 1.0 and summary["best_step"] <= 15
    assert "value_loss" not in logged[-1]


def test_an_endless_penalty_keeps_the_policy(bandit, whole, tmp_path):
    # The task pulls as in `whole`, but leaving the reference costs more than anything it pays.
    config = config_of(bandit, kl__coef=1e4, kl__estimator="k2", kl__place="loss", optimizer__clip_norm=0.0, steps=5)
    config.unlock().optimizer.learning_rate = 3e-4
    ppo.run(config, tmp_path)
    assert abs(metrics(tmp_path)[-1]["kl"]) < 0.02
    assert metrics(whole[0])[-1]["kl"] > 0.3


def test_lora_has_its_reference_in_the_base(bandit, tmp_path):
    config = config_of(bandit, lora__rank=4, lora__alpha=8.0, steps=6, optimizer__learning_rate=2e-2)
    ppo.run(config, tmp_path)
    logged = metrics(tmp_path)
    assert abs(logged[1]["kl"]) < 1e-5  # before the first update the policy is the reference
    assert logged[-1]["kl"] > 0.02
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_process_rewards_and_their_parts(bandit, tmp_path):
    config = config_of(bandit, steps=2, value_warmup=1, stop_kl=1e9, target_kl=1e9)
    config.unlock().questions = bandit.questions  # of two the judge alone knows the answers
    config.reward.update({"process": "min", "model": bandit.reward, "row_length": 64, "tokens_per_batch": 512})
    config.reward.upper_bound = 1.0
    config.entropy.update({"loss_coef": 0.01, "reward_coef": 0.01})
    config.kl.update({"target": 0.1, "horizon": 100})
    ppo.run(config, tmp_path)
    logged = metrics(tmp_path)[1:]
    for line in logged:
        parts = sum(line[f"reward/{name}"] for name in ("outcome", "process", "bonus", "format", "length"))
        assert line["reward"] == pytest.approx(parts, abs=1e-5)
        assert -1 <= line["reward/process"] <= 0
    assert "loss" not in logged[0] and "loss" in logged[1]  # the value model's warm-up
    assert logged[1]["kl_coef"] < logged[0]["kl_coef"]  # nearer than its target


def test_eight_devices_are_one(bandit, whole, tmp_path):
    config = config_of(bandit, mesh=(2, 2, 2), steps=2)
    ppo.run(config, tmp_path)
    for many, one in zip(metrics(tmp_path)[1:], metrics(whole[0])[1:3], strict=True):
        for name in ("reward", "kl", "entropy", "value_loss", "loss", "grad_norm"):
            assert many[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init": ""}, "config.init is empty; name the model/ folder"),
        ({"advantage": "gea"}, 'gea.*did you mean "gae"'),
        ({"advantage": "grpo", "sample__samples": 1}, "config.sample.samples"),
        ({"questions_per_step": 5}, "holds 4 questions, fewer than config.questions_per_step=5"),
        ({"levels": (1,)}, r"holds 4 questions, of which config.levels and config.sample.too_long leave 2, fewer than"),
        ({"length": 8, "sample__too_long": "drop"}, r"no question of .* in config.length=8 and the model's 64 positions"),
        ({"sample__temperature": 0.0, "sample__samples": 1}, "explores nothing"),
        ({"kl__target": 0.1, "kl__coef": 0.0}, "config.kl.target"),
        ({"stop_kl": 1.0, "kl__coef": 0.0}, "config.stop_kl"),
        ({"length": 8}, "config.length=8"),
        ({"minibatches": 129}, "config.minibatches=129 is more than the 128 rollouts of a step"),
        ({"reward__process": "min"}, "config.reward.model is empty"),
        ({"length": 10}, "11 tokens, more than config.length=10"),  # before a rollout is that long
        ({"lam": 1.5}, "config.lam=1.5 must be from 0 to 1"),
        ({"value_warmup": 1, "advantage": "grpo", "whiten_advantages": "none"}, "no value model"),
        ({"advantage": "grpo"}, "config.whiten_advantages=batch undoes .*configs/rl/grpo.py"),
        ({"kl__place": "loss"}, "config.kl.estimator=k1 .*config.kl.estimator=k2"),
        ({"kl__target": 0.1, "kl__horizon": 25}, "config.kl.horizon=25 .* the 128 rollouts"),  # 4 questions, 32 samples
        ({"value_warmup": 20}, "config.value_warmup=20 leaves the policy none of config.steps=20"),
        ({"reward__grade_workers": -1}, "config.reward.grade_workers=-1"),
        ({"kl__quantize": "int4"}, "config.kl.quantize='int4'"),
        ({"sample__rows": 0}, "config.sample.rows"),
        ({"sample__max_new_tokens": 100}, "config.sample.max_new_tokens=100 exceed"),
        ({"value_optimizer__b2": 1.0}, "config.value_optimizer.b2=1.0"),
        ({"reward_scale": -1.0}, "config.reward_scale=-1.0 must be above 0"),
        ({"reward_scale": 0.0}, "config.reward_scale=0.0 must be above 0"),
        ({"clip": 0.0}, "config.clip=0.0 must be above 0"),
        ({"clip_value": 0.0}, "config.clip_value=0.0 must be above 0"),
        ({"value_coef": 0.0}, "config.value_coef=0.0 must be above 0"),
    ],
)
def test_mistakes(bandit, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        ppo.run(config_of(bandit, **fields), tmp_path)


def test_questions_without_room_are_dropped_and_counted_and_validation_problems_are_told(bandit, tmp_path):
    questions = read_many(bandit.validation, "problem")
    write_records(tmp_path / "long.jsonl", [*questions, questions[0] | {"id": "long", "question": "a=" + "1+" * 80}])
    fields = {"questions": str(tmp_path / "long.jsonl"), "sample__too_long": "drop", "validation__problems": ""}
    config = config_of(bandit, steps=1, **fields)
    assert ppo.run(config, tmp_path / "out")["dropped_questions"] == 1
    config.unlock().validation.problems = str(tmp_path / "long.jsonl")
    told = (
        r'config.sample.max_new_tokens=6 exceed the model\'s 64 positions \(validation problem "long", the longest of 1 too '
        r"long ones among 5\); lower max_new_tokens, or take such ones out of config.validation.problems$"
    )
    with pytest.raises(UserError, match=told):
        ppo.run(config, tmp_path / "told")


def test_a_cold_run_with_a_judge_seen_from_outside(bandit, monkeypatch, tmp_path):
    """At another temperature than 1, the value model from the reward model, and an update that breaks the policy."""
    drawn, draw, loaded, load = [], ppo.Sampler.draw, [], ppo.lora.load
    monkeypatch.setattr(ppo.Sampler, "draw", lambda self, *some: drawn.append(some[1:]) or draw(self, *some))
    monkeypatch.setattr(ppo.lora, "load", lambda *some: loaded.append(tuple(map(str, some[2:]))) or load(*some))
    config = config_of(bandit, steps=2, minibatches=1, sample__temperature=0.7, value_init="", optimizer__learning_rate=1.0)
    config.reward.update({"process": "min", "model": bandit.reward, "row_length": 64, "tokens_per_batch": 512})
    config.kl.update({"target": 0.1, "horizon": 1000})
    config.validation.unlock().update({"every": 1, "shown": 4, "metric": ""})
    ppo.run(config, tmp_path)
    assert loaded == [("policy", bandit.policy), ("reward", bandit.reward)]
    first, second = metrics(tmp_path)[1:]
    assert abs(first["kl"]) < 1e-5 and first["sampler_trainer_difference"] < 1e-4
    assert second["kl_coef"] == pytest.approx(1e-3 * (1 - 0.2 * 128 / 1000))  # by all rollouts, not by the questions
    # Every step draws other samples, and a step's validation has the policy as the step left it.
    assert [list(samples) for samples, *told in drawn if told] == [list(range(32)), list(range(32, 64))]
    shown = [json.loads(line)["shown"] for line in open(tmp_path / "validation.jsonl")]
    texts = [[solution["text"] for solution in solutions.values()] for solutions in shown]
    assert len(texts) == 3 and texts[0] != texts[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reward__outcome": "all"}, "bandit/2.*gt_answer"),
        ({"reward__process": "min", "reward__quantize": "int4"}, "config.reward.quantize='int4'"),
    ],
)
def test_mistakes_about_the_judge(bandit, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        ppo.run(config_of(bandit, questions=bandit.questions, reward__model=bandit.reward, **fields), tmp_path)


def test_a_run_that_went_too_far_stops_and_stays_stopped(bandit, tmp_path):
    config = config_of(bandit, steps=5, stop_kl=1e-3)
    summary = ppo.run(config, tmp_path)
    logged = [line for line in metrics(tmp_path) if "kl" in line]
    assert [line["kl"] > 1e-3 for line in logged] == [False, True]  # of the fresh policy, and after its first updates
    assert "validation/all" in logged[-1] and summary["best_step"] == 2
    before = (tmp_path / "metrics.jsonl").read_bytes(), parameters(tmp_path / "model")
    ppo.run(config, tmp_path)  # as if killed before it was said to be done
    assert (tmp_path / "metrics.jsonl").read_bytes() == before[0]
    assert_same(parameters(tmp_path / "model"), before[1])
