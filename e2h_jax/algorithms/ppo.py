"""Reinforcement learning against a reward model: PPO with process rewards (paper section 3.4), and GRPO, Dr. GRPO and RLOO.

A step draws rollouts of questions, has them judged (rewards/judge.py), makes advantages (advantages.py), and takes clipped
policy-gradient steps on them:

    ratio = π(token) / π_old(token)        loss = max(-A ratio, -A clip(ratio, 1 ± ε)) - c_H H(π) + c_KL KL(π, π_ref)

(actor_critic.py: the models and these losses). With advantage "gae" a value model learns beside the policy; "rloo" and "grpo"
compare the rollouts of one question with each other instead; presets.py has the settings of each. The answers of hard
questions are not needed: their rewards come from the evaluator alone.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from e2h_jax.algorithms import actor_critic, presets, validation
from e2h_jax.algorithms.advantages import ADVANTAGES, KL_ESTIMATORS, SCOPES, WHITEN_REWARDS
from e2h_jax.algorithms.experience import Experience, inspected, make_experience, minibatch
from e2h_jax.data.chat import policy_template
from e2h_jax.data.records import read_many, select_levels
from e2h_jax.data.rollout import ARRAYS
from e2h_jax.data.templates import CHAT, Template, as_record, check_answer, with_answer
from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.errors import UserError, naming, nearest
from e2h_jax.grading.pool import GradingPool
from e2h_jax.metrics import MetricsWriter, Seconds
from e2h_jax.models import lora, store
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.programs import Assumed, Program, Unit, prefixed
from e2h_jax.parallel.rules import axis_size
from e2h_jax.rewards import judge
from e2h_jax.rewards.scoring import batch_rows
from e2h_jax.sampling import sample
from e2h_jax.sampling.prompts import prompts_of, show_first
from e2h_jax.sampling.rollout import Sampler
from e2h_jax.training import optimizer as optimizers
from e2h_jax.training.checkpoint import Checkpoints
from e2h_jax.training.faults import check_finite, interrupts, stop
from e2h_jax.training.loop import batch_shapes

MEANS = ("tokens", "sequences", "slots")


def defaults() -> ml_collections.ConfigDict:
    """Fields of the `ppo` stage."""
    config = ml_collections.ConfigDict()
    config.init = ""  # model/ folder of the policy; the reference policy is the same
    config.questions = ""  # problem records; of hard ones the answer may be null or "unavailable"
    config.levels = ()  # questions of these levels only; () = all
    config.template = "e2h"  # text format; chat = the one that the model's model.json records
    # How a solution's answer is found, in rewards and validations alike: template = as the template says | a rule (boxed,
    # section, gsm8k, sentence, last_number, any; docs/grading.md) | a regular expression with one group.
    config.answer = "template"
    config.seed = 0
    config.mesh = (1, -1, 1)  # devices along (data, fsdp, tensor)
    config.steps = 500  # each: rollouts, then updates on them
    config.questions_per_step = 512
    config.reward = judge.defaults().unlock()
    config.advantage = "gae"  # gae (PPO, with a value model) | rloo | grpo: several samples of a question, no value model.
    # configs/rl/grpo.py, rloo.py and dr_grpo.py hold all that the method needs (docs/ppo.md#presets)
    config.gamma = 1.0  # of gae
    config.lam = 1.0  # of gae
    config.grpo_std = True  # of grpo: divide by the group's standard deviation; False = Dr. GRPO
    config.whiten_rewards = "none"  # scale = over their standard deviation | original = also pays or charges each token | none
    config.reward_scale = 1.0  # factor of rewards with whiten_rewards=none (the original: 50)
    config.whiten_advantages = "batch"  # of gae: zero mean, unit deviation: batch | row (of each response alone) | none
    config.mask_padding = True  # of gae. False: padding takes part in whitening, as in the original
    config.loss_mean = "tokens"  # mean over all tokens | sequences (of each one's mean) | slots (all positions, padding too)
    config.epochs = 1  # passes over a step's rollouts
    config.minibatches = 8  # optimiser steps of a pass
    config.clip = 0.2  # of the policy's ratio
    config.clip_value = 0.2  # of the value's change
    config.value_coef = 0.1  # of the value loss
    config.value_init = ""  # model/ the value model starts from; "" = the reward model, or the policy if there is none
    config.value_warmup = 0  # steps in which the value model learns alone
    config.target_kl = 0.0  # a step's policy updates end when it is this far from the rollouts' (k3, nats per token); 0 = off
    config.stop_kl = 0.0  # the run ends when the policy is this far from the reference (k1, nats per solution); 0 = off
    config.kl = ml_collections.ConfigDict()  # penalty for leaving the reference policy
    config.kl.coef = 0.01  # 0 = no reference policy is kept
    config.kl.estimator = "k1"  # in the reward: k1 | k1_clamped and logp (the original's k1 and maxent); in the loss: k2 | k3
    config.kl.place = "reward"  # reward (PPO) | loss (GRPO)
    config.kl.target = 0.0  # nats per solution: the coefficient adapts to it (Ziegler et al. 2019); 0 = constant
    config.kl.horizon = 10_000  # rollouts in which the adaptive coefficient grows by 22 % or falls by 20 % at most
    config.kl.quantize = ""  # int8 = the reference policy in int8; "" = in the compute dtype. With LoRA: lora.quantize
    config.entropy = ml_collections.ConfigDict()
    config.entropy.loss_coef = 0.0  # bonus in the loss
    config.entropy.reward_coef = 0.0  # bonus in the reward
    config.entropy.reward_mean = "full"  # full = per token / length | none = per token | merged = the mean, at the end
    config.sample = sample.defaults().unlock()  # how rollouts are drawn; every step has its own random numbers
    for name in ("model", "problems", "levels", "limit", "template", "seed", "mesh", "dtype", "quantize"):
        del config.sample[name]
    config.sample.update({"samples": 1, "top_k": 0})
    config.length = 2048  # tokens a packed row; at least the longest prompt and max_new_tokens together
    config.forward_rows = 32  # rows of a forward pass (log-probabilities, values), over all devices
    config.update_rows = 8  # rows of a backward pass, over all devices
    config.remat = ""  # what the backward pass recomputes: none | dots | full, see models/llama.py; "" = the model's own
    config.optimizer = optimizers.defaults()
    config.value_optimizer = optimizers.defaults()
    for optimizer in (config.optimizer, config.value_optimizer):
        optimizer.update({"b2": 0.95, "eps": 1e-5, "warmup_fraction": 0.01})
    config.lora = lora.defaults()
    config.validation = validation.defaults()
    config.checkpoint_every = 10  # steps
    return config.lock()


def run(config: ml_collections.ConfigDict, workdir: Path) -> dict:
    """Trains and writes `workdir/model`; returns the summary. Raises UserError for bad settings or data."""
    workdir = Path(workdir)
    check_values(config)
    rows = (config.sample.rows, config.forward_rows, config.update_rows)
    mesh = make_mesh(config.mesh, rows=rows, width=store.load_config(config.init)[1].width)
    actor_critic.check_mesh(config, mesh)
    tokenizer, first = load_tokenizer(config.init), jax.process_index() == 0
    template = policy_template(config.template, config.init, tokenizer, tell=first)
    reads, template = {"template": as_record(template)}, with_answer(template, config.answer)
    questions, dropped = _questions(config, tokenizer, template)
    show_first(tokenizer, prompts_of(tokenizer, questions[:1], template), template)
    with (
        judge.Judge(config.reward, mesh, tokenizer, template) as reward,
        GradingPool() as pool,
        interrupts() as interrupted,
        Checkpoints(workdir / "checkpoints") as checkpoints,
    ):
        reward.check_answers(questions)
        actor_critic.check_value_tokenizer(config, tokenizer)
        models = actor_critic.Models(config, mesh)
        validated = None
        if config.validation.problems:
            validated = validation.Validation(config.validation, template, workdir, pool)
            validation.check_room(validated.problems, tokenizer, template, models.config.max_length, config.sample)
        best = validation.Best(workdir, validated)
        drawing = [models.graph, models.config, models.policy.params, mesh, tokenizer, template]
        with naming("config.sample."):
            sampler = Sampler(_drawing(config), *drawing, questions, config.questions_per_step)
            if validated:
                problems = validated.problems
                greedy = Sampler(_drawing(config, temperature=0.0, samples=1), *drawing, problems, len(problems))
                greedy.kernel.release()
        longest = max(map(len, sampler.prompts.values())) + config.sample.max_new_tokens - 1
        if longest > config.length:
            raise UserError(f"a rollout may have {longest} tokens, more than config.length={config.length}; raise it")

        def validate(step: int, last: bool) -> dict[str, float]:
            if not validated or not (last or validated.due(step, config.steps)):
                return {}
            greedy.kernel.adopt(sampler.kernel)
            rollouts, _ = greedy.draw(validated.problems, [0])
            greedy.kernel.release()
            accuracy = validated.record(step, {rollout.problem["id"]: rollout.text for rollout in rollouts})
            if step:
                best.offer(step, lambda folder: models.save(folder, tokenizer, reads), checkpoints.steps())
            return {f"validation/{name}": value for name, value in accuracy.items()}

        start, state = checkpoints.restore(models.state())
        best.resume(start)
        if start:
            models.restore(state)
        sampler.kernel.update(models.policy.params)
        seconds, writer = Seconds(), MetricsWriter(workdir, resume_step=start, enabled=first)
        metrics, finished = writer.last, start
        bar = tqdm(total=config.steps, initial=start, unit="step", desc=workdir.name, disable=not first)
        with writer, bar:
            if not start and (before := validate(0, False)):
                writer.write(0, before)
            for step in range(start + 1, config.steps + 1):
                if models.stopped:
                    break
                # Sample indices, and so the random numbers of a question, are new in every step.
                seconds.start()
                samples = range((step - 1) * config.sample.samples, step * config.sample.samples)
                # A step may take a minute, a preemption notice 30 seconds: a step that has not changed any model yet is given
                # up when the run is told to stop, and begins anew.
                drawn = sampler.draw(questions_of(step, questions, config), samples, interrupted)
                if drawn is None:
                    break
                rollouts, metrics = drawn
                seconds.stop("rollout")
                shaped = reward(rollouts)
                seconds.stop("reward")
                if interrupted():
                    break
                experience, measured = make_experience(rollouts, shaped, models, config)
                seconds.stop("forward")
                if interrupted():
                    break
                metrics |= measured | learn(experience, models, config, step)
                check_finite(workdir, step, metrics, *inspected(experience))
                sampler.kernel.update(models.policy.params)
                seconds.stop("update")
                models.adapt(metrics.get("kl", 0.0), len(rollouts))
                models.stopped = 0 < config.stop_kl < metrics.get("kl", 0.0)
                metrics |= validate(step, step == config.steps or models.stopped)
                seconds.stop("validate")
                writer.write(step, metrics | seconds.latest)
                bar.update()
                bar.set_postfix_str(f"reward {metrics['reward']:.3f}, {metrics['rollout_tokens_per_second']:,.0f} tokens/s")
                finished = step
                if step % config.checkpoint_every == 0:
                    checkpoints.save(step, models.state())
                if interrupted():
                    break
            if finished > start and finished % config.checkpoint_every:
                checkpoints.save(finished, models.state())
    # The checkpoint is on disk. Also a signal that came during the last step, or while it was written, ends the stage.
    stop(interrupted(last=True))
    if not validated:
        best.offer(finished, lambda folder: models.save(folder, tokenizer, reads), ())
    return _summary(validated, best.publish()) | {"dropped_questions": dropped} | metrics | seconds.total


def programs(config: ml_collections.ConfigDict, mesh: Mesh, assumed: Assumed) -> Iterator[Program]:
    """The programs that `run` compiles, see parallel/programs.py. Each runs beside all that the others keep."""
    check(config)
    actor_critic.check_mesh(config, mesh, assumed.model)
    models = actor_critic.Models(config, mesh, assumed.model)
    policy = models.policy.params
    drawing = [models.graph, models.config, policy, mesh, assumed, min(models.config.max_length, config.length + 1)]
    with naming("config.sample."):
        sampler = sample.describe(_drawing(config), *drawing, prompts=config.questions_per_step)
        greedy = None
        if config.validation.problems:
            greedy = sample.describe(_drawing(config, temperature=0.0, samples=1), *drawing, beside=sampler.kernel)

    # What there is at every moment: the models, the judge, the caches.
    rollouts = config.questions_per_step * config.sample.samples
    unit = Unit("step", rollouts * sampler.solution_tokens, config.steps)
    tokens = rollouts * (sampler.prompt_tokens + sampler.solution_tokens)  # that forward passes and the judge read
    held, scorer = models.held(), None
    if config.reward.process != "none":
        scorer, row_length = judge.load_scorer(config.reward, mesh, assumed.model(config.reward.model))
        held["parameters"] = (held["parameters"], scorer.params)
    held["cache"] = [(one.description.prompts, one.description.suffixes) for one in (sampler, greedy) if one]
    load = sampler.description.load
    yield Program("load", load.function, load.arguments, mesh, held, unit)  # the sampler's weights anew, from the policy's
    held = held | {"parameters": (held["parameters"], sampler.description.weights)}

    yield from sampler.programs(held, unit, unit.tokens)
    if greedy:
        yield from prefixed("validation", greedy.programs(held, unit, 0.0))
    if scorer:
        rows = batch_rows(config.reward.tokens_per_batch, row_length, axis_size(mesh, "batch"))
        yield from scorer.programs(rows, row_length, held, unit, tokens / (rows * row_length), "judge")
    forward = batch_shapes(dict.fromkeys(ARRAYS, np.zeros(0, np.int32)), config.forward_rows, config.length, mesh)
    fields = dict.fromkeys((*Experience.ARRAYS, "weights"), np.zeros(0, np.float32))
    fields |= dict.fromkeys(ARRAYS, np.zeros(0, np.int32))
    update = batch_shapes(fields, config.update_rows, config.length, mesh)
    updates = config.epochs * config.minibatches
    forwards, microbatches = (count * tokens / config.length for count in (1 / config.forward_rows, 1 / config.update_rows))
    work = actor_critic.Work(unit, forwards, updates, microbatches / config.minibatches)
    yield from models.programs(forward, update, held, work)


def _questions(config: ml_collections.ConfigDict, tokenizer: Any, template: Template) -> tuple[list[dict], int]:
    """The questions of the run, and how many of them were dropped because they leave no room (`config.sample.too_long`)."""
    read = read_many(config.questions, "problem")
    questions = asked = select_levels(read, config.levels)
    if config.sample.too_long == "drop":
        positions, new_tokens = store.load_config(config.init)[1].max_length, config.sample.max_new_tokens
        longest = min(config.length + 1, positions) - new_tokens
        prompts = prompts_of(tokenizer, asked, template)
        questions = [question for question, prompt in zip(asked, prompts, strict=True) if len(prompt) <= longest]
        if asked and not questions:
            raise UserError(
                f"no question of {config.questions} leaves room for config.sample.max_new_tokens={new_tokens} in "
                f"config.length={config.length} and the model's {positions} positions; raise config.length, or lower "
                "config.sample.max_new_tokens"
            )
    if len(questions) < config.questions_per_step:
        held = f"{config.questions} holds {len(read)} questions"
        if len(questions) < len(read):
            held += f", of which config.levels and config.sample.too_long leave {len(questions)}"
        raise UserError(f"{held}, fewer than config.questions_per_step={config.questions_per_step}; lower it")
    return questions, len(asked) - len(questions)


def questions_of(step: int, questions: Sequence[dict], config: ml_collections.ConfigDict) -> list[dict]:
    """The questions of a step (from 1): every epoch is shuffled anew, and what does not fill a step is left out of it."""
    per_epoch = len(questions) // config.questions_per_step
    epoch, place = divmod(step - 1, per_epoch)
    order = np.random.default_rng((config.seed, epoch)).permutation(len(questions))
    size = config.questions_per_step
    return [questions[index] for index in order[place * size : (place + 1) * size]]


def learn(
    experience: Experience, models: actor_critic.Models, config: ml_collections.ConfigDict, step: int
) -> dict[str, float]:
    """Takes the step's optimiser steps on shuffled minibatches; returns the means of what they logged."""
    logged: dict[str, list] = {}
    skip_policy = step <= config.value_warmup
    for epoch in range(config.epochs):
        order = np.random.default_rng((config.seed, step, epoch)).permutation(len(experience.rollouts))
        for chosen in np.array_split(order, config.minibatches):
            batches = minibatch(experience, chosen, config)
            sums = models.value.update(batches, step - 1) if models.value is not None else {}
            sums = {f"value_{name}": value for name, value in sums.items()}
            if not skip_policy:
                sums |= models.policy.update(batches, step - 1)
                share = sum(batch["weights"].sum() for batch in batches)  # of the tokens; the rest is on padding ("slots")
                sums |= {name: sums[name] / max(share, 1e-8) for name in ("clipped", "approximate_kl")}
                if config.target_kl:
                    skip_policy = float(sums["approximate_kl"]) > config.target_kl
            for name, value in sums.items():
                logged.setdefault(name, []).append(value)
    return {name: float(np.mean([np.asarray(value) for value in values])) for name, values in logged.items()}


def _drawing(config: ml_collections.ConfigDict, **changes) -> ml_collections.ConfigDict:
    """The fields with which `sampling/sample.py` makes a kernel."""
    drawing = config.sample.copy_and_resolve_references().unlock()
    drawing.update({"seed": config.seed} | changes)
    return drawing


def _summary(validated: validation.Validation | None, best: int) -> dict[str, float]:
    """Accuracy at the beginning and at the step whose model is published, and which that is."""
    if validated is None:
        return {}
    found = {"start": validated.accuracy(0), "best": validated.accuracy(best)}
    accuracies = {f"{when}/{name}": value for when, values in found.items() for name, value in values.items()}
    return accuracies | {"best_step": best}


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for values that make no sense, before any file is read: a recipe asks all its stages first."""
    check(config)
    actor_critic.check_batches(config, make_mesh(config.mesh))


def check(config: ml_collections.ConfigDict) -> None:
    """`check_values` for any mesh."""
    for name, what in (("init", "the model/ folder of a policy"), ("questions", "a file of problem records")):
        if not config[name]:
            raise UserError(f"config.{name} is empty; name {what}")
    choices = {
        "advantage": tuple(ADVANTAGES),
        "loss_mean": MEANS,
        "whiten_rewards": WHITEN_REWARDS,
        "whiten_advantages": (*SCOPES, "none"),
        "kl.estimator": KL_ESTIMATORS,
        "kl.place": ("reward", "loss"),
        "entropy.reward_mean": ("full", "none", "merged"),
    }
    for name, allowed in choices.items():
        group, _, field = name.rpartition(".")
        value = (config[group] if group else config)[field]
        if value not in allowed:
            raise UserError(f"config.{name}={value!r} must be one of {', '.join(allowed)}{nearest(value, allowed)}")
    for name in ("steps", "questions_per_step", "epochs", "minibatches", "forward_rows", "update_rows", "checkpoint_every"):
        if config[name] < 1:
            raise UserError(f"config.{name}={config[name]} must be at least 1")
    for name in ("seed", "value_coef", "value_warmup", "target_kl", "stop_kl"):
        if config[name] < 0:
            raise UserError(f"config.{name}={config[name]} must be at least 0")
    for name in ("reward_scale", "clip", "clip_value", *(("value_coef",) if config.advantage == "gae" else ())):
        if config[name] <= 0:
            raise UserError(f"config.{name}={config[name]} must be above 0")
    if not (0 <= config.gamma <= 1 and 0 <= config.lam <= 1):
        raise UserError(f"config.gamma={config.gamma} and config.lam={config.lam} must be from 0 to 1")
    if config.kl.coef < 0 or config.kl.target < 0 or config.kl.horizon <= 0:
        raise UserError("config.kl.coef and config.kl.target must be at least 0, config.kl.horizon above 0")
    rollouts = config.questions_per_step * config.sample.samples
    if config.kl.target and 5 * config.kl.horizon <= rollouts:
        raise UserError(
            f"config.kl.horizon={config.kl.horizon} lets the coefficient fall to 0 within a step; "
            f"set it to the {rollouts} rollouts of a step or more"
        )
    if config.kl.target and (not config.kl.coef or config.kl.place == "loss"):
        raise UserError("config.kl.target adapts a penalty in the reward: set config.kl.coef and config.kl.place=reward")
    if config.stop_kl and not config.kl.coef:
        raise UserError("config.stop_kl needs the reference policy: set config.kl.coef above 0")
    with naming("config.kl."):
        store.check("", config.kl.quantize)
    presets.check(config, defaults())
    check_answer(config.answer)
    judge.check(config.reward)
    if config.template != CHAT and not config.template.endswith(".json"):  # a record or a file says its name itself
        judge.check_template(config.reward, config.template, config.answer)
    validation.check(config.validation)
    optimizers.check(config.optimizer)
    with naming("config.value_"):
        optimizers.check(config.value_optimizer)
    if config.value_warmup >= config.steps:
        raise UserError(f"config.value_warmup={config.value_warmup} leaves the policy none of config.steps={config.steps}")
    with naming("config.sample."):
        sample.check(config.sample, least_rows=1)  # what memory is left is for the models that learn
    if config.sample.temperature == 0:
        raise UserError("config.sample.temperature=0 explores nothing; reinforcement learning needs it above 0")
    if config.minibatches > rollouts:
        there = f"the {rollouts} rollouts of a step (questions_per_step x sample.samples)"
        raise UserError(f"config.minibatches={config.minibatches} is more than {there}; lower it")
    lora.check(config)
