"""Training curves: the metrics.jsonl of training runs, thinned, with a title and a sentence for each metric."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from e2h_jax.evaluation.report.folders import TRAINING, Folder

POINTS = 400  # of a curve; a longer one shows means of neighbouring steps

# Metric -> title and what it says, in the order of the page. "validation_hard" of the rounds is "validation/hard" of PPO.
METRICS = {
    "loss": ("Loss", "What the optimiser lowers; of PPO the clipped policy objective."),
    "token_accuracy": ("Token accuracy", "Share of trained tokens that the model puts first."),
    "label_loss": ("Label loss", "Cross-entropy of the step or outcome labels."),
    "label_accuracy": ("Label accuracy", "Share of labels that the evaluator gets right at threshold 0.5."),
    "lm_loss": ("Language-model loss", "Auxiliary loss on the solution's tokens."),
    "validation/all": ("Validation accuracy", "Greedy solutions of held-out problems that are right."),
    "validation/easy": ("Validation, easy", "The same on levels that the generator was trained on."),
    "validation/hard": ("Validation, hard", "The same on levels that it was not."),
    "reward": ("Reward", "Mean total reward of a rollout, without the KL penalty."),
    "reward/process": ("Reward: process", "Part that the step scores of the evaluator give."),
    "reward/outcome": ("Reward: outcome", "Part that the graded final answers give, where they are known."),
    "reward/accuracy": ("Rollout accuracy", "Share of right final answers among the rollouts whose answer is known."),
    "reward/format": ("Reward: format", "Part for solutions without a final answer."),
    "reward/length": ("Reward: length", "Part for solutions that are cut off or too long."),
    "reward/bonus": ("Reward: bonus", "Part for what the config's bonus rewards."),
    "kl": ("KL to the reference", "How far rollouts are from the model that PPO began with, in nats a solution."),
    "approximate_kl": ("KL of the update", "How far the minibatches of a step moved the policy."),
    "kl_coef": ("KL coefficient", "Weight of the KL penalty."),
    "entropy": ("Entropy", "Mean entropy of the next token; falling to 0: the policy no longer explores."),
    "clipped": ("Clip fraction", "Share of tokens whose probability ratio was clipped."),
    "length": ("Length", "Mean tokens of a rollout."),
    "stopped": ("Stopped", "Share of rollouts that ended by themselves."),
    "value_loss": ("Value loss", "Squared error of the value model."),
    "explained_variance": ("Explained variance", "Of the returns, by the value model: 1 is perfect, 0 as good as the mean."),
    "margin": ("Margin", "Reward of the chosen minus that of the rejected solution, as DPO implies it."),
    "accuracy": ("Preference accuracy", "Share of pairs in which the chosen solution has the higher implied reward."),
    "preference_loss": ("Preference loss", "DPO's loss without the NLL term."),
    "chosen_nll": ("NLL of the chosen", "Per token; rising: the policy forgets what it should prefer."),
    "chosen_reward": ("Reward of the chosen", "Implied by DPO: beta times the log-ratio to the reference."),
    "rejected_reward": ("Reward of the rejected", "The same of the other solution of each pair."),
    "kept": ("Kept", "Solutions that the round trained on."),
    "pairs": ("Pairs", "Pairs that the round trained on."),
    "grad_norm": ("Gradient norm", "Before clipping."),
    "value_grad_norm": ("Gradient norm, value", "Of the value model, before clipping."),
    "sampler_trainer_difference": (
        "Sampler against trainer",
        "Largest difference between the log-probabilities of sampler and trainer.",
    ),
    "tokens_per_second": ("Tokens per second", "Since the run began, padding and compilation left out."),
}

_KINDS = {
    "sft": "Supervised fine-tuning",
    "reward": "Evaluators",
    "rest_em": "ReST-EM, by round",
    "dpo": "DPO, by round",
    "ppo": "PPO",
}
_BY_ROUND = {"rest_em": "ReST-EM, training inside the rounds", "dpo": "DPO, training inside the rounds"}
_OF_ROUNDS = ("validation/all", "validation/easy", "validation/hard", "kept", "pairs")


def training(folders: Sequence[Folder]) -> list[dict]:
    """Returns groups of runs that share their metrics, {"title", "inside": of the rounds of a loop, "runs"}.

    A run is {"run", "name", "curves": {metric: [steps, values]}}; values are numbers, or null where one is not finite.
    """
    groups: dict[tuple[str, bool], list[dict]] = {}
    for stage in TRAINING:
        for folder in (folder for folder in folders if folder.stage == stage):
            # A model from nothing takes many more steps than what is made of it, which would be a speck beside its curve.
            kind = "Pre-training" if stage == "sft" and not folder.config.get("init") else _KINDS[stage]
            parts = [((kind, False), folder.name, read_curves(folder.path / "metrics.jsonl"))]
            if stage in _BY_ROUND:  # what training logged inside a round is below; the rounds repeat its last line
                parts = [(key, name, {m: c for m, c in curves.items() if m in _OF_ROUNDS}) for key, name, curves in parts]
            for path in sorted(folder.path.glob("round-*/train/metrics.jsonl"), key=_round):
                parts.append(((_BY_ROUND[stage], True), f"{folder.name}, round {_round(path)}", read_curves(path)))
            for key, name, curves in parts:
                if curves:
                    groups.setdefault(key, []).append({"run": folder.run, "name": name, "curves": curves})
    return [{"title": title, "inside": inside, "runs": runs} for (title, inside), runs in groups.items()]


def _round(path: Path) -> int:
    return int(re.search(r"round-(\d+)", str(path.parent.parent.name)).group(1))


def read_curves(path: Path) -> dict[str, list]:
    """Returns metric -> [steps, values] of one metrics.jsonl for the metrics of `METRICS`, in their order; {} without the file.

    Lines that are none of a run's, such as the torn last one of a run that is still going on, are passed over.
    """
    curves: dict[str, tuple[list, list]] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            record = json.loads(line)
            found = [(name.replace("validation_", "validation/"), float(value)) for name, value in record.items()]
            step = int(record["step"])
        except (ValueError, TypeError, AttributeError, KeyError):  # no line of MetricsWriter's, or the torn last one
            continue
        for name, value in found:
            if name in METRICS:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return {name: _thinned(*curves[name]) for name in METRICS if name in curves}


def _thinned(steps: list[int], values: list[float]) -> list[list]:
    """The curve as it is, or as means of equally many neighbours."""
    size = -(-len(steps) // POINTS)
    starts = range(0, len(steps), size)
    values = [sum(values[i : i + size]) / len(values[i : i + size]) for i in starts]
    return [[steps[min(i + size, len(steps)) - 1] for i in starts], [_rounded(value) for value in values]]


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
