"""Stages with LoRA: only the adapter changes, the loss falls, a cut run goes on to the bit, any mesh, int8 beneath."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file

from e2h_jax.algorithms import reward_model, sft
from e2h_jax.data.arithmetic import PIECES, problems, solve
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template
from e2h_jax.data.tokenizer import build_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.training import loop

SOME = {"targets": ("q", "o", "down")}


def one_device(shape=None, **_):
    return make_mesh((1, 1, 1), jax.devices()[:1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random policy, solved problems and labelled solutions of the built-in curriculum."""
    folder = tmp_path_factory.mktemp("lora")
    tokenizer, template = build_tokenizer(PIECES, folder / "tokenizer"), get_template("e2h")
    config = LlamaConfig(len(tokenizer), width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64)
    rng, abstract = np.random.default_rng(0), store.abstract("policy", config)[1]
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), abstract)
    store.save(folder / "init", "policy", config, params, tokenizer)
    solved = [(problem, solve(problem["question"])) for problem in problems(0, "train", 1, 120)]
    write_records(folder / "problems.jsonl", [p | {"solution": template.format_solution(*found)} for p, found in solved])
    write_records(
        folder / "labelled.jsonl",
        [
            {"problem_id": None, "question": p["question"], "prefix": "", "steps": [*steps, f"# Answer\n\n{a}"]}
            | {"labels": [1.0] * len(steps) + [0.0]}
            for p, (steps, a) in solved
        ],
    )
    return folder


def config_of(module, folder, lora, **fields):
    config = module.defaults().unlock()
    data = "problems" if module is sft else "labelled"
    config.update(init=str(folder / "init"), data=str(folder / f"{data}.jsonl"), length=64, batch_size=8, epochs=2)
    config.update(log_every=1, checkpoint_every=5, **fields)
    config.optimizer.learning_rate = 2e-2
    config.lora.update({"rank": 4, "alpha": 8.0} | lora)
    return config


def metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("time", "tokens_per_second")} for line in lines]


def parameters(folder, kind):
    params = store.load(folder, one_device(), kind)[2]
    return {".".join(path): np.asarray(param[...]) for path, param in nnx.to_flat_state(params)}


@pytest.fixture(scope="module")
def whole(folder):
    """SFT of some targets on one device: folder and summary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", one_device)
        return folder / "whole", sft.run(config_of(sft, folder, SOME), folder / "whole")


def test_the_loss_falls_and_only_the_targets_change(folder, whole):
    workdir, summary = whole
    curve = [line["loss"] for line in metrics(workdir)]
    assert np.mean(curve[-3:]) < curve[0] - 0.15
    before, after = parameters(folder / "init", "policy"), parameters(workdir / "model", "policy")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"blocks.q", "blocks.o", "blocks.down"}
    assert all(np.linalg.matrix_rank((after[n] - before[n])[0].reshape(32, -1), tol=1e-4) == 4 for n in ("blocks.q",))
    assert summary["trained_parameters"] == 2 * 4 * ((32 + 32) + (32 + 32) + (64 + 32))
    assert summary["parameters"] == summary["trained_parameters"] + sum(value.size for value in before.values())


def test_the_merged_model_is_the_base_and_the_adapter_beside_it(folder, whole):
    workdir, _ = whole
    factors = load_file(workdir / "adapter" / "adapter_model.safetensors")
    before, after = parameters(folder / "init", "policy"), parameters(workdir / "model", "policy")
    for layer in range(2):
        a, b = (factors[f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_{x}.weight"] for x in "AB")
        change = (8 / 4 * b @ a).T.reshape(4, 8, 32)
        np.testing.assert_allclose(after["blocks.o"][layer], before["blocks.o"][layer] + change, atol=1e-6)


def test_checkpoints_hold_the_adapter_and_its_moments_only(whole):
    workdir, summary = whole
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    stored = ocp.checkpointables_metadata(newest).metadata["state"]
    sizes = {name: int(np.prod(leaf.shape)) for name, leaf in stored.items()}
    assert sum(sizes.values()) <= 3 * summary["trained_parameters"] + 8  # values, two moments, and counters
    assert len([name for name in sizes if "lora" in name]) == 3 * 6 and not [n for n in sizes if "embedding" in n]


def test_a_cut_run_goes_on_to_the_bit(folder, whole, monkeypatch):
    config, make = config_of(sft, folder, SOME), loop.make_train_step
    monkeypatch.setattr(loop, "make_mesh", one_device)

    def breaking(*arguments):
        step = make(*arguments)

        def wrapped(state, batch):
            if int(state.step) == 6:
                raise RuntimeError("power cut")
            return step(state, batch)

        return wrapped

    monkeypatch.setattr(loop, "make_train_step", breaking)
    with pytest.raises(RuntimeError, match="power cut"):
        sft.run(config, folder / "cut")
    monkeypatch.setattr(loop, "make_train_step", make)
    sft.run(config, folder / "cut")
    assert metrics(folder / "cut") == metrics(whole[0])
    first, second = (parameters(workdir / "model", "policy") for workdir in (folder / "cut", whole[0]))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_eight_devices_are_one_device(folder, whole):
    sft.run(config_of(sft, folder, SOME | {"merge": False}, mesh=(2, 2, 2)), folder / "eight")
    assert not (folder / "eight" / "model").exists()
    found, expected = metrics(folder / "eight"), metrics(whole[0])
    np.testing.assert_allclose([x["loss"] for x in found], [x["loss"] for x in expected], atol=1e-5)
    found, expected = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (folder / "eight", whole[0]))
    assert found.keys() == expected.keys()


def test_a_reward_model_learns_its_head_and_an_adapter_beside_int8_weights(folder, monkeypatch):
    monkeypatch.setattr(loop, "make_mesh", one_device)
    workdir = folder / "reward"
    summary = reward_model.run(config_of(reward_model, folder, {"quantize": "int8"}, lm_loss=0.3), workdir)
    curve = metrics(workdir)
    assert curve[0]["label_loss"] == pytest.approx(np.log(2), abs=1e-3) and curve[-1]["label_loss"] < 0.3
    assert curve[-1]["lm_loss"] < curve[0]["lm_loss"]
    before, after = parameters(folder / "init", "reward"), parameters(workdir / "model", "reward")
    changed = {name.removeprefix("trunk.blocks.") for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"q", "k", "v", "o", "gate", "up", "down", "score_head", "score_bias"}
    assert summary["trained_parameters"] < 0.4 * summary["parameters"]
    factors = load_file(workdir / "adapter" / "adapter_model.safetensors")
    np.testing.assert_array_equal(factors["base_model.model.score.weight"], after["score_head"][None])


@pytest.mark.parametrize(
    ("lora", "fields", "message"),
    [
        ({"rank": -1}, {}, r"config\.lora\.rank=-1 must be at least 0"),
        ({"targets": ("q", "dwon")}, {}, r"config\.lora\.targets: 'dwon' is unknown.*\"down\".*there are q, k"),
        ({"targets": ()}, {}, r"config\.lora\.targets is empty"),
        ({"alpha": 0.0}, {}, r"config\.lora\.alpha=0\.0 must be above 0"),
        ({"quantize": "int4"}, {}, r"config\.lora\.quantize='int4' must be"),
        ({"rank": 0, "quantize": "int8"}, {}, r"int8 weights cannot be trained; set config\.lora\.rank too"),
        ({}, {"init": ""}, r"config\.lora\.rank is set, but config\.init is empty"),
    ],
)
def test_mistakes_are_one_sentence(folder, tmp_path, lora, fields, message):
    with pytest.raises(UserError, match=message):
        sft.run(config_of(sft, folder, lora, **fields), tmp_path)
    assert not list(tmp_path.iterdir())
