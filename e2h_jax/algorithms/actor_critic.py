"""Policy, reference policy and value model of PPO on a mesh: their losses, and the programs that run them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e2h_jax.algorithms.advantages import kl
from e2h_jax.data.rollout import Rows
from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.errors import UserError, naming
from e2h_jax.models import lora, store
from e2h_jax.models.attention import packed_causal
from e2h_jax.parallel.checks import check_model, check_rows
from e2h_jax.parallel.programs import Program, Unit
from e2h_jax.parallel.rules import constrain
from e2h_jax.training import optimizer as optimizers
from e2h_jax.training.learner import Learner, to_device
from e2h_jax.training.loop import Batch
from e2h_jax.training.losses import token_logprobs


def policy_loss(logprobs, entropy, batch, config: ml_collections.ConfigDict):
    """Weighted sum over tokens of the clipped policy-gradient loss (Schulman et al. 2017, eq. 7), and sums to log.

    All of `batch` and of the policy's `logprobs` and `entropy` are [B, L]; padding has weight 0.
    """
    weights, advantages = batch["weights"], batch["advantages"]
    change = jnp.where(weights > 0, logprobs - batch["old_logprobs"], 0.0)
    ratio = jnp.exp(change)
    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    losses = jnp.maximum(-advantages * ratio, -advantages * clipped) - config.entropy.loss_coef * entropy
    if config.kl.coef and config.kl.place == "loss":
        losses += config.kl.coef * kl(config.kl.estimator, jnp.where(weights > 0, logprobs, 0.0), batch["reference_logprobs"])
    return jnp.sum(weights * losses), {
        "clipped": jnp.sum(weights * (ratio != clipped)),
        "approximate_kl": jnp.sum(weights * (jnp.expm1(change) - change)),
    }


def value_loss(values, batch, config: ml_collections.ConfigDict):
    """Weighted sum over tokens of half the squared error, clipped to a change of `clip_value`, times `value_coef`."""
    old, returns = batch["old_values"], batch["returns"]
    clipped = jnp.clip(values, old - config.clip_value, old + config.clip_value)
    losses = jnp.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return config.value_coef * 0.5 * jnp.sum(batch["weights"] * losses), {}


def check_batches(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Raises UserError for a mesh that does not divide the rows."""
    check_rows(mesh, forward_rows=config.forward_rows, update_rows=config.update_rows)
    with naming("config.sample."):
        check_rows(mesh, rows=config.sample.rows)


def check_mesh(config: ml_collections.ConfigDict, mesh: Mesh, find: Callable = Path) -> None:
    """Raises UserError for a mesh that does not divide the rows or one of the models, before any is loaded.

    `find`: as of `Models`.
    """
    check_batches(config, mesh)
    judge_model = config.reward.model if config.reward.process != "none" else ""
    for folder in filter(None, (config.init, judge_model, config.value_init)):
        check_model(mesh, store.load_config(find(folder))[1], folder)


def value_source(config: ml_collections.ConfigDict) -> str:
    """The model/ folder that the value model starts from."""
    judge = config.reward.model if config.reward.process != "none" else ""
    return config.value_init or judge or config.init


def check_value_tokenizer(config: ml_collections.ConfigDict, tokenizer) -> None:
    """Raises UserError if the value model, where there is one, has another tokenizer than the policy."""
    if config.advantage == "gae" and load_tokenizer(source := value_source(config)).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"{source}, from which the value model starts, has another tokenizer than the policy; "
            "set config.value_init to a model that has the same, such as the policy itself"
        )


class Work(NamedTuple):
    """How often the programs run in a step."""

    unit: Unit
    forwards: float
    updates: int
    microbatches: float  # of an update


class Models:
    """Policy, reference policy (`config.kl.coef` > 0) and value model (advantage "gae").

    Args:
      config: of the `ppo` stage.
      find: of a model's path its folder; or its description, of which `programs` tells what would run.

    Attributes:
      graph: the policy's, without its parameters.
      config: the policy's LlamaConfig.
      policy: the policy's Learner.
      value: the value model's Learner, or None.
      kl_coef: the coefficient as it is now.
      stopped: the run has ended early.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, mesh: Mesh, find: Callable[[str], Path | store.Described] = Path
    ):
        self._settings, self._mesh = config, mesh
        self.kl_coef, self.stopped = float(np.float32(config.kl.coef)), False
        graph, self.config, params, frozen = lora.load(config, mesh, "policy", find(config.init))
        self.graph = graph

        def logprobs(graph, params, batch):
            model = nnx.merge(graph, params)
            hidden, _ = model(batch["tokens"], batch["positions"], packed_causal(batch["segment_ids"]))
            return token_logprobs(hidden, model.output_matrix(), batch["targets"], config.sample.temperature)

        def values(graph, params, batch):
            model = nnx.merge(graph, params)
            return model(batch["tokens"], batch["positions"], packed_causal(batch["segment_ids"]))[0]

        # The reference policy: the base with the adapter off, of the same arrays; or a frozen copy in the compute dtype.
        self._reference = None
        if config.kl.coef:
            if frozen is not None:
                self._reference = lora.remove(graph, nnx.merge_state(frozen, params))
            else:
                kept = {"param_dtype": self.config.dtype, "quantize": config.kl.quantize}
                with naming("config.kl."):
                    reference_graph, _, reference = store.load(find(config.init), mesh, "policy", **kept)
                self._reference = reference_graph, reference

        self.policy = Learner(
            lambda params, batch: policy_loss(*logprobs(graph, params, batch), batch, config),
            optimizers.make_optimizer(config.optimizer, config.steps, params),
            params,
            frozen,
            mesh,
        )
        self.value = None
        if config.advantage == "gae":
            value_graph, _, params, frozen = lora.load(config, mesh, "reward", find(value_source(config)))
            with naming("config.value_"):
                optimizer = optimizers.make_optimizer(config.value_optimizer, config.steps, params)
            self.value = Learner(
                lambda params, batch: value_loss(values(value_graph, params, batch), batch, config),
                optimizer,
                params,
                frozen,
                mesh,
            )

        whole = lambda x: constrain(x, None, None)  # noqa: E731 (every process makes the advantages of all rollouts)
        self._logprobs = jax.jit(lambda params, batch: tuple(map(whole, logprobs(graph, params, batch))))
        if self._reference is not None:
            self._reference_logprobs = jax.jit(lambda params, batch: whole(logprobs(self._reference[0], params, batch)[0]))
        if self.value is not None:
            self._values = jax.jit(lambda params, batch: whole(values(value_graph, params, batch)))

    def forward(self, rows: Rows) -> tuple[jax.Array | None, ...]:
        """Log-probabilities and entropies of the policy, log-probabilities of the reference, values: [rows, length] or None."""
        with jax.set_mesh(self._mesh):
            batch = to_device(self._mesh, rows.arrays)
            logprobs, entropy = self._logprobs(self.policy.params, batch)
            reference = self._reference_logprobs(self._reference[1], batch) if self._reference is not None else None
            values = self._values(self.value.params, batch) if self.value is not None else None
        return logprobs, entropy, reference, values

    def programs(self, forward: Batch, update: Batch, held: Mapping[str, Any], work: Work) -> Iterator[Program]:
        """The programs of `forward` and of both learners' updates, for batches of these shapes; `held` lies on the devices."""
        for name, function, params in (
            ("policy forward", self._logprobs, self.policy.params),
            *([("reference forward", self._reference_logprobs, self._reference[1])] if self._reference is not None else []),
            *([("value forward", self._values, self.value.params)] if self.value is not None else []),
        ):
            yield Program(name, function, (params, forward), self._mesh, held, work.unit, work.forwards)
        for name, learner in {"policy": self.policy, "value": self.value}.items():
            if learner is not None:
                yield from learner.programs(name, update, held, work.unit, work.updates, work.microbatches)

    def held(self) -> dict[str, Any]:
        """What the models keep on the devices, for `programs`."""
        learners = [learner for learner in (self.policy, self.value) if learner is not None]
        reference = None if self._reference is None else self._reference[1]
        parameters = [learner.params for learner in learners]
        return {"parameters": (*parameters, reference), "optimiser": [learner.state.opt_state for learner in learners]}

    def adapt(self, measured: float, rollouts: int) -> None:
        """Moves an adaptive KL coefficient towards its target (Ziegler et al. 2019, section 2.2)."""
        target = self._settings.kl.target
        if target:
            change = np.clip(measured / target - 1, -0.2, 0.2) * rollouts / self._settings.kl.horizon
            self.kl_coef = float(np.float32(self.kl_coef * (1 + change)))  # as the checkpoint holds it

    def state(self) -> dict:
        """Everything that changes from step to step, for a checkpoint."""
        replicated = NamedSharding(self._mesh, PartitionSpec())
        numbers = jax.device_put(np.array([self.kl_coef, self.stopped], np.float32), replicated)
        return {"policy": self.policy.state, "numbers": numbers} | ({} if self.value is None else {"value": self.value.state})

    def restore(self, state: dict) -> None:
        """Takes over what `state` returned."""
        self.policy.state = state["policy"]
        if self.value is not None:
            self.value.state = state["value"]
        self.kl_coef, self.stopped = float(state["numbers"][0]), bool(state["numbers"][1])

    def save(self, folder: Path, tokenizer, reads: dict) -> None:
        """Writes the policy (and LoRA's adapter) to `folder`, in place of an earlier one, whole or not at all.

        `reads`: see `store.load_reads`.
        """
        lora.save(folder, self._settings, self._mesh, "policy", self.config, self.policy.state.params, tokenizer, reads)
