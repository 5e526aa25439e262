"""Processes that make slices of the examples: what they find together is what one process makes."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from e2h_jax import stage
from e2h_jax.algorithms import reward_model, sft
from e2h_jax.data import arithmetic
from e2h_jax.data.storage import write_records
from e2h_jax.data.tokenizer import build_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.training import examples as reading


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model, and data of either stage: three levels, records to be dropped and records without a target."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = build_tokenizer(arithmetic.PIECES, folder / "tokenizer")
    config = LlamaConfig(len(tokenizer), width=16, layers=1, heads=2, kv_heads=2, head_dim=8, mlp_width=16, max_length=128)
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    store.save(folder / "model", "policy", config, store.create("policy", config, mesh, seed=0)[1], tokenizer)
    problems = [p for level in (1, 2, 3) for p in arithmetic.problems(0, "train", level, 7)]
    steps = [arithmetic.solve(problem["question"])[0] for problem in problems]
    solved = [p | {"solution": "\n\n".join(s) if n % 4 else None} for n, (p, s) in enumerate(zip(problems, steps, strict=True))]
    labelled = [
        {"problem_id": None, "question": p["question"], "prefix": "", "steps": s, "labels": [1.0 if n % 4 else None] * len(s)}
        | {"level": p["level"]}
        for n, (p, s) in enumerate(zip(problems, steps, strict=True))
    ]
    rng = np.random.default_rng(0)
    for name, records in (("sft", solved), ("reward", labelled)):
        write_records(folder / f"{name}.jsonl", [records[n] for n in rng.permutation(len(records))])
    return folder


class ReachedError(Exception):
    """Training would begin."""


@pytest.fixture
def examples_of(world, monkeypatch):
    """examples_of(name, workdir, index, count, fields): what a process of a job hands to the training loop."""

    def run(name, workdir, index=0, count=1, **fields):
        module = {"sft": sft, "reward": reward_model}[name]
        config = stage.load(name).defaults()
        config.update({"init": str(world / "model"), "data": str(world / f"{name}.jsonl")})
        config.update({"length": 64, "batch_size": 8} | fields)
        monkeypatch.setattr(reading, "jax", SimpleNamespace(process_index=lambda: index, process_count=lambda: count))

        def fit(workdir, config, mesh, params, loss_fn, examples, frozen):
            raise ReachedError(examples)

        monkeypatch.setattr(module.loop, "fit", fit)
        with pytest.raises(ReachedError) as reached:
            module.run(config, workdir)
        return reached.value.args[0]

    return run


def of_all(examples_of, name, workdir, count, **fields):
    """What the last process has; the others, alone so far, do not find it."""
    for index in range(count - 1):
        with pytest.raises(UserError, match="not all hosts see the same folder"):
            examples_of(name, workdir, index, count, **fields)
    return examples_of(name, workdir, count - 1, count, **fields)


def assert_same(found, expected):
    assert len(found) == len(expected) > 3
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for field, array in one.items():
            np.testing.assert_array_equal(array, other[field])
    np.testing.assert_array_equal(found.about, expected.about)


@pytest.mark.parametrize(
    "name, fields",
    [("sft", {"levels": (1, 3)}), ("reward", {"position_gap": 40}), ("reward", {"position_gap": 9, "levels": (2,)})],
)
def test_slices_make_what_one_process_makes(examples_of, tmp_path, name, fields):
    whole = examples_of(name, tmp_path / "1", **fields)
    assert not (tmp_path / "1").exists()  # one process keeps them in memory
    for count in (2, 3):
        assert_same(of_all(examples_of, name, tmp_path / str(count), count, **fields), whole)


@pytest.mark.parametrize("levels", [(), (1, 3)])
def test_the_first_records_of_all_slices_together(examples_of, tmp_path, levels):
    whole = examples_of("sft", tmp_path / "1", levels=levels)
    some = [of_all(examples_of, "sft", tmp_path / f"few{count}", count, levels=levels, limit=9) for count in (1, 2, 3)]
    for few in some:
        assert_same(few, some[0])
        assert_same(few, whole.where(np.arange(len(whole)) < len(few)))
    assert len(some[0]) < len(whole)


def test_finished_parts_are_taken_by_any_number_of_processes(world, examples_of, tmp_path, monkeypatch):
    whole = of_all(examples_of, "sft", tmp_path, 3)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_many", None)  # nothing is read again
        for count in (1, 2, 3):
            assert_same(examples_of("sft", tmp_path, count - 1, count), whole)
    # One of them is lost: the process of this number makes it, and another number of processes begins anew.
    (tmp_path / ".examples" / "00001-of-00003" / "tokens.npy").unlink()
    assert_same(examples_of("sft", tmp_path), whole)
    assert_same(of_all(examples_of, "sft", tmp_path, 2), whole)


def test_other_data_and_another_config_make_other_parts(world, examples_of, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_bytes((world / "sft.jsonl").read_bytes())
    of_all(examples_of, "sft", tmp_path, 2, data=str(data))
    assert len(of_all(examples_of, "sft", tmp_path, 2, data=str(data), levels=(1,))) < 8
    data.write_bytes(b"".join(data.read_bytes().splitlines(keepends=True)[:-1]))
    made = json.loads((tmp_path / ".examples" / "00000-of-00002" / "part.json").read_text())
    of_all(examples_of, "sft", tmp_path, 2, data=str(data), levels=(1,))
    assert json.loads((tmp_path / ".examples" / "00000-of-00002" / "part.json").read_text()) != made
    reading.discard(tmp_path)
    assert (tmp_path / ".examples").exists()  # by the last process
    reading.jax.process_index = lambda: 0
    reading.discard(tmp_path)
    assert not (tmp_path / ".examples").exists()
