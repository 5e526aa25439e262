"""transformers itself, where torch is installed (`pip install torch`): it computed the fixture, and it loads our exports."""

import json

import hub_models
import jax
import numpy as np
import pytest
from flax import nnx

from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.models import store
from e2h_jax.models.attention import packed_causal
from e2h_jax.parallel.mesh import make_mesh

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # of models this small, threads do little but wait for each other, and that at full load

BOUND = 1e-4


@pytest.mark.parametrize("name", hub_models.MODELS)
def test_the_fixture_is_what_torch_computes(name, expected):
    model = hub_models.build(name)
    logits, new = hub_models.compute(model, hub_models.prompt(name))
    np.testing.assert_allclose(logits, expected[f"{name}/logits"], atol=1e-5)
    np.testing.assert_array_equal(new, expected[f"{name}/greedy"])
    stored = json.loads(str(expected[f"{name}/model"]))["shapes"]
    assert stored == {key: list(p.shape) for key, p in model.named_parameters()}


@pytest.mark.parametrize("name", hub_models.MODELS)
def test_transformers_loads_the_export_with_the_same_numbers(name, imported, run_convert, expected, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_convert(imported(name), tmp_path, to="huggingface", shard_gb=2e-5)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "huggingface", output_loading_info=True)
    assert not any(report.values())
    logits, new = hub_models.compute(model.eval(), hub_models.prompt(name))
    np.testing.assert_allclose(logits, expected[f"{name}/logits"], atol=1e-5)
    np.testing.assert_array_equal(new[: len(expected[f"{name}/greedy"])], expected[f"{name}/greedy"][: len(new)])
    assert AutoTokenizer.from_pretrained(tmp_path / "huggingface").eos_token == "</s>"


@pytest.mark.parametrize("name", ["llama_biases", "mistral_window", "qwen2_tied", "qwen3"])
def test_transformers_loads_a_reward_model_with_the_same_scores(name, imported, tokenizer_folder, run_convert, tmp_path):
    from transformers import AutoModelForTokenClassification

    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    graph, config, params = store.load(imported(name), mesh, "reward")
    rng = np.random.default_rng(0)
    params["score_head"][...] = jax.numpy.asarray(rng.normal(0, 0.3, 32), np.float32)
    params["score_bias"][...] = jax.numpy.float32(-0.7)
    store.save(tmp_path / "model", "reward", config, params, load_tokenizer(tokenizer_folder))
    run_convert(tmp_path / "model", tmp_path, to="huggingface")
    model, report = AutoModelForTokenClassification.from_pretrained(tmp_path / "huggingface", output_loading_info=True)
    assert not any(report.values()) and model.config.num_labels == 1
    tokens = hub_models.prompt(name)
    with torch.no_grad():
        scores = model.eval()(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0, :, 0].numpy()

    @jax.jit
    def score(params):
        positions = np.arange(len(tokens))[None]
        return nnx.merge(graph, params)(tokens[None], positions, packed_causal(np.ones((1, len(tokens)), np.int32)))[0]

    np.testing.assert_allclose(np.asarray(score(params))[0], scores, atol=BOUND)
