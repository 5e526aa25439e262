"""A tiny model that nobody has trained, and configs of every stage that name it."""

import pytest

from e2h_jax import stage
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.models.store import Described
from e2h_jax.parallel.programs import Assumed
from e2h_jax.planning.compiling import Compiler
from e2h_jax.planning.stages import Planned
from e2h_jax.planning.topologies import parse

TINY = LlamaConfig(64, width=32, layers=1, heads=4, kv_heads=2, head_dim=8, mlp_width=64, max_length=256)


@pytest.fixture
def assumed() -> Assumed:
    """Every model is the tiny one, a reward model where its path says so."""
    return Assumed(lambda path: Described("reward" if "reward" in path else "policy", TINY), prompt_tokens=16)


@pytest.fixture
def topology():
    return parse("cpu:8")


@pytest.fixture(scope="session")
def compiler() -> Compiler:
    return Compiler()


SAMPLING = {"rows": 16, "rows_per_prompt": 1, "max_new_tokens": 16, "prompt_bucket": 16}
FIELDS = {
    "sft": {"init": "policy", "length": 32, "batch_size": 16},
    "reward": {"init": "policy", "length": 32, "batch_size": 16, "microbatches": 2, "lm_loss": 0.1},
    "sample": {"model": "policy"} | SAMPLING,
    "score": {"model": "reward", "tokens_per_batch": 512, "length_bucket": 16},
    "rest_em": {"init": "policy", "questions": "questions", "reward_model": "reward"},
    "dpo": {"init": "policy", "questions": "questions", "reward_model": "reward"},
    "ppo": {"init": "policy", "questions": "questions", "length": 32, "forward_rows": 8, "questions_per_step": 16},
}
NESTED = {
    "rest_em": {"sample": SAMPLING, "score": {"tokens_per_batch": 512}, "train": {"length": 32, "batch_size": 16}},
    "dpo": {"sample": SAMPLING, "score": {"tokens_per_batch": 512}, "train": {"length": 64, "batch_size": 16}},
    "ppo": {"sample": SAMPLING, "reward": {"model": "reward", "tokens_per_batch": 512}, "validation": {"problems": "p"}},
}


@pytest.fixture
def plan_of():
    """`plan_of("ppo", lora={"rank": 4})`: a stage with a quick config and these fields."""

    def plan_of(name: str, **fields) -> Planned:
        config = stage.load(name).defaults().copy_and_resolve_references().unlock()
        config.update(FIELDS[name])
        for group, values in [*NESTED.get(name, {}).items(), *fields.items()]:
            if isinstance(values, dict):
                config[group].update(values)
            else:
                config[group] = values
        return Planned(name, name, config.lock(), "config.")

    return plan_of
