"""What is planned is what runs: the same text of the training step, the same bytes on the devices."""

import jax
import numpy as np
import pytest

from e2h_jax.algorithms import sft
from e2h_jax.data.arithmetic import PIECES, problems, solve
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template
from e2h_jax.data.tokenizer import build_tokenizer
from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.programs import Assumed
from e2h_jax.planning.estimate import held
from e2h_jax.training import loop


@pytest.fixture
def config(tmp_path):
    """A stage that can be run: a small model and problems of the built-in curriculum."""
    tokenizer, template = build_tokenizer(PIECES, tmp_path / "tokenizer"), get_template("e2h")
    shape = LlamaConfig(len(tokenizer), width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64, max_length=64)
    mesh = make_mesh((1, -1, 1))
    store.save(tmp_path / "init", "policy", shape, store.create("policy", shape, mesh, seed=0)[1], tokenizer)
    solved = [(problem, solve(problem["question"])) for problem in problems(0, "train", 1, 40)]
    write_records(tmp_path / "problems.jsonl", [p | {"solution": template.format_solution(*found)} for p, found in solved])
    config = sft.defaults().unlock()
    config.update(init=str(tmp_path / "init"), data=str(tmp_path / "problems.jsonl"), length=64, batch_size=8)
    return config


@pytest.mark.parametrize("rank", [0, 4])
def test_the_planned_step_is_the_one_that_runs(rank, config, tmp_path, monkeypatch):
    config.lora.rank = rank
    seen = {}

    def train(*, state, train_step, dataset, mesh, steps, **_):
        arrays = next(iter(dataset))
        batch = {name: jax.make_array_from_process_local_data(loop.batch_sharding(mesh), a) for name, a in arrays.items()}
        function = getattr(train_step, "func", train_step)
        keywords = getattr(train_step, "keywords", {})
        seen.update(text=function.lower(state, batch, **keywords).as_text(), steps=steps, state=state, frozen=keywords)
        return state, {}

    monkeypatch.setattr(loop, "train", train)
    sft.run(config, tmp_path / "run")
    assumed = Assumed(lambda path: store.Described(*store.load_config(path)), steps=seen["steps"])
    (program,) = sft.programs(config, make_mesh(config.mesh), assumed)
    with jax.set_mesh(program.mesh):
        assert program.trace().lower().as_text() == seen["text"]

    # Memory of the plan: that of the real arrays on the first device.
    def bytes_of(tree):
        shards = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(tree)]
        return sum(np.asarray(shard).nbytes for shard in shards)

    planned, _ = held(program)
    assert planned["parameters"] == bytes_of((seen["state"].params, seen["frozen"]))
    assert planned["optimiser"] == bytes_of(seen["state"].opt_state)
