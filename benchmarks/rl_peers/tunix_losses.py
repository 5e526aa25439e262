"""tunix's advantages and DPO loss on the numbers of an .npz file, in its own environment: python tunix_losses.py IN OUT."""

import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
from tunix.rl import algo_core
from tunix.sft.dpo import dpo_trainer


def main(given: str, out: str) -> None:
    x = np.load(given)
    advantages, returns = algo_core.compute_gae_advantages(
        x["rewards"], x["values"], x["mask"], float(x["gamma"]), float(x["lam"])
    )
    example = SimpleNamespace(
        **dict.fromkeys(("input_ids", "positions", "attention_mask", "logits_to_keep", "completion_mask", "images")),
        ref_chosen_logps=x["reference"][:, 0],
        ref_rejected_logps=x["reference"][:, 1],
    )
    losses = []
    # The loss is what is compared: the sequences' log-probabilities are given.
    with mock.patch.object(dpo_trainer, "compute_logps", lambda *_, **__: (x["policy"][:, 0], x["policy"][:, 1])):
        for smoothing in x["smoothings"]:
            loss, metrics = dpo_trainer.dpo_loss_fn(None, example, "dpo", float(x["beta"]), 0.1, float(smoothing))
            losses.append([loss, metrics["rewards/margin"], metrics["rewards/accuracy"]])
    np.savez(out, advantages=advantages, returns=returns, dpo=np.array(losses, np.float64))


main(*sys.argv[1:])
