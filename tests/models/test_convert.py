"""`e2h convert`: what goes in comes out bit for bit, with its tokenizer; a bad source is one sentence and leaves nothing."""

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from huggingface_hub.errors import LocalEntryNotFoundError
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from e2h_jax.data.tokenizer import bos_ids, load_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.main import main
from e2h_jax.models import arrays, store
from e2h_jax.models.attention import packed_causal
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh

ROOT = Path(__file__).parents[2]
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a Hub folder, through its index if it has one, by the library's own reader."""
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    assert files == {path.name for path in folder.glob("*.safetensors")}
    return {name: array for file in files for name, array in load_file(folder / file).items()}


def same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype and array.shape == other[name].shape, name
        assert array.tobytes() == other[name].tobytes(), name


def parameters_of(model: Path) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array.read().result()) for name, array in arrays.open_arrays(model / "params").items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama_biases", "llama_yarn", "qwen2_tied", "qwen3_window", "mistral_window"])
def test_there_and_back_and_there_again(name, dtype, make_hub, run_convert, tmp_path):
    tensors = make_hub(tmp_path / "hub", name, DTYPES[dtype])
    run_convert(tmp_path / "hub", tmp_path / "in")
    summary = run_convert(tmp_path / "in/model", tmp_path / "out", to="huggingface", shard_gb=2e-5)
    exported = tmp_path / "out/huggingface"
    assert len(list(exported.glob("model-*-of-*.safetensors"))) > 2
    same_bits(tensors_of(exported), tensors)
    assert summary["parameters"] == sum(tensor.size for tensor in tensors.values())
    run_convert(exported, tmp_path / "again")
    same_bits(parameters_of(tmp_path / "again/model"), parameters_of(tmp_path / "in/model"))
    assert (tmp_path / "again/model/model.json").read_text() == (tmp_path / "in/model/model.json").read_text()


def test_shards_are_no_larger_than_asked(imported, run_convert, tmp_path):
    run_convert(imported("llama"), tmp_path, to="huggingface", shard_gb=3e-5)
    index = json.loads((tmp_path / "huggingface/model.safetensors.index.json").read_text())
    for path in (tmp_path / "huggingface").glob("*.safetensors"):
        tensors = load_file(path)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= 30_000
        assert all(index["weight_map"][name] == path.name for name in tensors)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors_of(tmp_path / "huggingface").values())


def test_an_imported_model_is_an_orbax_checkpoint_of_its_own_dtype(make_hub, run_convert, tmp_path, caplog):
    """… and loads onto a mesh, each device its part, as float32 or bfloat16."""
    tensors = make_hub(tmp_path / "hub", "qwen3", ml_dtypes.bfloat16)
    run_convert(tmp_path / "hub", tmp_path)
    assert all(array.dtype == ml_dtypes.bfloat16 for array in parameters_of(tmp_path / "model").values())
    for dtype in ("float32", "bfloat16"):
        _, config, params = store.load(tmp_path / "model", make_mesh((1, 4, 2)), "policy", param_dtype=dtype)
        assert (config.dtype, config.remat, config.family) == ("bfloat16", "full", "qwen3")
        up = params["blocks"]["up"][...]
        assert up.sharding.spec == P(None, "fsdp", "tensor") and up.dtype == dtype
        assert up.addressable_shards[0].data.shape == (3, 8, 20)
        np.testing.assert_array_equal(np.asarray(up)[1].astype(np.float32), tensors["model.layers.1.mlp.up_proj.weight"].T)
        assert params["blocks"]["q_norm"][...].dtype == params["norm"][...].dtype == np.float32
    assert not caplog.records or "not found" not in caplog.text


def test_matrices_kept_in_bfloat16_give_the_same_logits(make_hub, run_convert, tmp_path):
    make_hub(tmp_path / "hub", "qwen2_tied", ml_dtypes.bfloat16)
    run_convert(tmp_path / "hub", tmp_path)
    mesh, logits = make_mesh((1, 1, 1), jax.devices()[:1]), []
    for dtype in ("float32", "bfloat16"):
        graph, _, params = store.load(tmp_path / "model", mesh, "policy", param_dtype=dtype)
        assert params["blocks"]["q_bias"][...].dtype == np.float32 and params["embedding"][...].dtype == dtype

        @jax.jit
        def forward(params, graph=graph):
            model, tokens = nnx.merge(graph, params), np.arange(40)[None]
            return model.logits(model(tokens, tokens, packed_causal(np.ones((1, 40), np.int32)))[0])

        logits.append(np.asarray(forward(params)))
    np.testing.assert_array_equal(*logits)


def test_what_training_saved_is_exported_with_the_same_bits(tokenizer_folder, run_convert, tmp_path):
    """From arrays cut over eight devices, as `store.save` leaves them: policy and reward model."""
    mesh = make_mesh((2, 2, 2))
    shape = LlamaConfig(48, width=32, layers=3, heads=4, kv_heads=2, head_dim=16, mlp_width=40)
    for kind, trunk in (("policy", ()), ("reward", ("trunk",))):
        params = store.create(kind, shape, mesh, seed=1)[1]
        store.save(tmp_path / kind, kind, shape, params, load_tokenizer(tokenizer_folder))
        run_convert(tmp_path / kind, tmp_path / f"{kind}_out", to="huggingface")
        tensors, values = tensors_of(tmp_path / f"{kind}_out/huggingface"), nnx.to_pure_dict(params)
        for key in trunk:
            head, values = values, values[key]
        down = np.asarray(values["blocks"]["down"])
        np.testing.assert_array_equal(tensors["model.layers.2.mlp.down_proj.weight"], down[2].T)
        o = np.asarray(values["blocks"]["o"])
        np.testing.assert_array_equal(tensors["model.layers.0.self_attn.o_proj.weight"], o[0].reshape(-1, 32).T)
        text = json.loads((tmp_path / f"{kind}_out/huggingface/config.json").read_text())
        assert text["eos_token_id"] == 2 and text["bos_token_id"] == 1
    assert ("lm_head.weight" in tensors, "score.bias" in tensors) == (False, True)
    np.testing.assert_array_equal(tensors["score.weight"], np.asarray(head["score_head"])[None])


def test_the_tokenizer_and_the_generation_config_travel_along(make_hub, run_convert, tmp_path):
    make_hub(tmp_path / "hub", "qwen2")
    run_convert(tmp_path / "hub", tmp_path)
    run_convert(tmp_path / "model", tmp_path, to="huggingface")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        original = (tmp_path / "hub" / name).read_bytes()
        assert original == (tmp_path / "model" / name).read_bytes() == (tmp_path / "huggingface" / name).read_bytes()
    assert load_tokenizer(tmp_path / "model").get_vocab() == load_tokenizer(tmp_path / "hub").get_vocab()
    text = json.loads((tmp_path / "huggingface/config.json").read_text())
    assert text["eos_token_id"] == [2, 5] and text["architectures"] == ["Qwen2ForCausalLM"] and text["torch_dtype"] == "float32"


def test_what_an_earlier_version_made_is_exported_with_the_bos_it_has_learned(make_hub, run_convert, tmp_path):
    make_hub(tmp_path / "hub", "llama")
    for name, field in (("tokenizer.json", {"post_processor": None}), ("tokenizer_config.json", {"add_bos_token": False})):
        path = tmp_path / "hub" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | field))
    run_convert(tmp_path / "hub", tmp_path)
    run_convert(tmp_path / "model", tmp_path / "new", to="huggingface")
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    assert description.pop("bos") == "tokenizer"
    (tmp_path / "model" / "model.json").write_text(json.dumps(description))
    run_convert(tmp_path / "model", tmp_path / "old", to="huggingface")
    for made, begin in (("new", []), ("old", [1])):
        folder = tmp_path / made / "huggingface"
        assert bos_ids(load_tokenizer(folder)) == begin
        assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode("w1").ids[:-1] == begin
    run_convert(tmp_path / "old/huggingface", tmp_path / "again")
    assert bos_ids(load_tokenizer(tmp_path / "again/model")) == [1]


def test_without_a_generation_config_config_json_says_what_ends_a_solution(make_hub, run_convert, tmp_path):
    make_hub(tmp_path / "hub", "qwen2", eos_token_id=[2, 5])
    (tmp_path / "hub/generation_config.json").unlink()
    run_convert(tmp_path / "hub", tmp_path)
    assert load_tokenizer(tmp_path / "model").generation_ends == (2, 5)


def test_another_dtype_and_a_cropped_vocabulary(make_hub, run_convert, tmp_path):
    tensors = make_hub(tmp_path / "hub", "llama_padded")
    run_convert(tmp_path / "hub", tmp_path, dtype="bfloat16", vocab_size=48)
    values = parameters_of(tmp_path / "model")
    assert values["embedding"].shape == (48, 32) and values["lm_head"].shape == (32, 48)
    np.testing.assert_array_equal(values["lm_head"], tensors["lm_head.weight"][:48].T.astype(ml_dtypes.bfloat16))
    assert store.load_config(tmp_path / "model")[1].vocab_size == 48
    run_convert(tmp_path / "model", tmp_path, to="huggingface", dtype="float16")
    assert all(tensor.dtype == np.float16 for tensor in tensors_of(tmp_path / "huggingface").values())


def test_layers_of_different_dtypes_take_the_wider(make_hub, run_convert, tmp_path):
    tensors = make_hub(tmp_path / "hub", "llama", ml_dtypes.bfloat16)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].astype(np.float32)}, tmp_path / "hub/model.safetensors")
    run_convert(tmp_path / "hub", tmp_path)
    values = parameters_of(tmp_path / "model")
    assert values["blocks.up"].dtype == np.float32 and values["blocks.down"].dtype == ml_dtypes.bfloat16


def test_tables_that_old_versions_stored_are_left_out(make_hub, run_convert, tmp_path):
    tensors = make_hub(tmp_path / "hub", "qwen2_tied")
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"]}  # tied, and stored all the same
    save_file(tensors | table | head, tmp_path / "hub/model.safetensors")
    run_convert(tmp_path / "hub", tmp_path)
    assert "lm_head" not in parameters_of(tmp_path / "model")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change(**changes):
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def retensor(edit):
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)

    return apply


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never opened")


def indexed(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
BAD = {
    "no such folder": (lambda folder: shutil.rmtree(folder), {}, "there is no folder .*hub"),
    "cut off": (cut, {}, r"model\.safetensors is damaged or cut off .*; download it again"),
    "missing shard": (indexed, {}, r"names model-00002-of-00002\.safetensors, which is not there; download it again"),
    "damaged index": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{"), {}, r"index\.json is damaged",
    ),
    "pickle": (pickled, {}, r"holds no model\.safetensors and no .* \(pytorch_model\.bin is a pickle, .* never opened\)"),
    "no config": (lambda folder: (folder / "config.json").unlink(), {}, r"holds no config\.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), {}, "holds no tokenizer"),
    "architecture": (change(model_type="gpt_neox"), {}, "model_type 'gpt_neox' is not supported; there are llama, mistral"),
    "head": (change(architectures=["LlamaForMaskedLM"]), {}, "LlamaForMaskedLM is not supported"),
    "no evaluator": (change(architectures=["LlamaForSequenceClassification"]), {}, "holds no score.weight, .* is it a policy"),
    "shape": (change(intermediate_size=48), {}, r"proj\.weight has shape \(32, 40\), but by config\.json it is \(32, 48\)"),
    "missing tensor": (retensor(lambda tensors: tensors.pop(UP)), {}, f"lacks tensors that its config.json calls for: {UP}"),
    "extra tensor": (retensor(lambda tensors: tensors.update(odd=np.ones(1))), {}, "F64; only F32, F16, BF16"),
    "other tensors": (
        retensor(lambda tensors: tensors.update({"a.odd": tensors[NORM], "b.odd": tensors[NORM]})),
        {}, "holds tensors besides those that its config.json calls for: a.odd and 1 more",
    ),
    "dtype": (retensor(lambda tensors: tensors.update({NORM: np.ones(32, np.int8)})), {}, f"{NORM} is I8; only F32, F16, BF16"),
    "vocabulary": (lambda folder: None, {"vocab_size": 49}, "config.vocab_size=49 must be 0 .* at most the model's 48"),
    "export of no model": (lambda folder: None, {"to": "huggingface"}, r"holds no model \(no model\.json\)"),
    "to": (lambda folder: None, {"to": "torch"}, "config.to='torch' must be"),
    "target dtype": (lambda folder: None, {"dtype": "int8"}, "config.dtype='int8' must be"),
    "remat": (lambda folder: None, {"remat": "some"}, "config.remat='some' must be one of none"),
    "shard size": (lambda folder: None, {"shard_gb": 0.0}, "config.shard_gb must be above 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_source_is_one_sentence_and_leaves_nothing(name, make_hub, run_convert, tmp_path):
    spoil, fields, message = BAD[name]
    make_hub(tmp_path / "hub", "llama")
    spoil(tmp_path / "hub")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=message) as error:
        run_convert(tmp_path / "hub", tmp_path / "out", **fields)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_there_is_not_overwritten(imported, make_hub, run_convert, tmp_path):
    make_hub(tmp_path / "hub", "llama")
    run_convert(tmp_path / "hub", tmp_path)
    for spoil in (lambda: None, (tmp_path / "model" / "converted.json").unlink):
        spoil()
        with pytest.raises(UserError, match="model is there already; delete it, or use another --workdir"):
            run_convert(tmp_path / "hub", tmp_path, dtype="bfloat16")
    with pytest.raises(UserError, match=r"is a model/ folder already; to export it, set config.to=huggingface"):
        run_convert(imported("llama"), tmp_path / "other")


def test_what_a_killed_run_left_is_replaced(make_hub, run_convert, tmp_path):
    make_hub(tmp_path / "hub", "llama")
    (tmp_path / "model.partial/params").mkdir(parents=True)
    (tmp_path / "model.partial/params/rubbish").write_text("x")
    run_convert(tmp_path / "hub", tmp_path)
    assert not (tmp_path / "model.partial").exists() and not (tmp_path / "model/params/rubbish").exists()


KILLED = """
import os, signal, sys
from e2h_jax import main, stage
write = stage.write_json
stage.write_json = lambda path, value: os.kill(os.getpid(), signal.SIGKILL) if path.name == "done.json" else write(path, value)
sys.exit(main.main())
"""


@pytest.mark.parametrize("to", ["model", "huggingface"])
def test_a_run_killed_when_only_done_json_was_missing_just_finishes(to, make_hub, imported, tmp_path):
    if to == "model":
        make_hub(tmp_path / "hub", "llama")
    source = tmp_path / "hub" if to == "model" else imported("llama")
    arguments = ["convert", f"--config.source={source}", f"--config.to={to}", f"--workdir={tmp_path / 'run'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / to).rglob("*")}
    assert len(written) > 5 and not (tmp_path / "run" / "done.json").exists()
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / to).rglob("*")} == written
    done = json.loads((tmp_path / "run" / "done.json").read_text())["metrics"]
    assert done == json.loads((tmp_path / "run" / to / "converted.json").read_text())["summary"]
    assert done["family"] == "llama" and done["parameters"] > 1000


def test_a_name_on_the_hub(make_hub, run_convert, tmp_path, monkeypatch):
    make_hub(tmp_path / "snapshot", "llama")
    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    run_convert("EleutherAI/llemma_7b", tmp_path, revision="v1")
    assert asked[0][:2] == ("EleutherAI/llemma_7b", "v1")
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked[0][2])

    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"llemma_7b is no folder, and the Hub does not give it \(no connection\)\.$"):
        run_convert("EleutherAI/llemma_7b", tmp_path / "other")


def test_the_command(make_hub, tmp_path, capsys):
    make_hub(tmp_path / "hub", "qwen3")
    arguments = ["convert", f"--config.source={tmp_path / 'hub'}", f"--workdir={tmp_path / 'run'}"]
    assert main(arguments) == 0
    assert "family" in capsys.readouterr().out
    done = json.loads((tmp_path / "run/done.json").read_text())
    assert done["metrics"]["family"] == "qwen3"
    assert main(arguments) == 0 and "done already, skipped" in capsys.readouterr().out
    assert main(["convert", "--config.source=no/where/at/all", f"--workdir={tmp_path / 'bad'}"]) == 2
    assert "there is no folder no/where/at/all" in capsys.readouterr().err
    assert main(["convert", "--help"]) == 0 and "config.shard_gb" in capsys.readouterr().out


def test_importing_needs_a_few_tensors_of_memory_not_the_model(tmp_path):
    """The small version of benchmarks/convert_memory.py: 0.8 GB in shards of a few tensors."""
    script = ROOT / "benchmarks/convert_memory.py"
    spec = importlib.util.spec_from_file_location("convert_memory", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    layer = module.make_model(tmp_path / "hub", gb=0.8, shard_gb=0.25)
    shards = [path.stat().st_size for path in (tmp_path / "hub").glob("*.safetensors")]
    command = [sys.executable, str(script), "--measure", "import", str(tmp_path / "hub"), str(tmp_path), "1"]
    child = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True)
    shutil.rmtree(tmp_path / "hub")
    shutil.rmtree(tmp_path / "model")
    rise = json.loads(child.stdout)["rise"]
    assert layer < rise < min(1.3 * max(shards) + layer, 0.6 * sum(shards))


def test_configs_that_leave_the_parameters_are_kept_apart(imported):
    """What is stored beside the weights is the network; how it runs can be changed on loading."""
    kind, config = store.load_config(imported("llama_llama3"))
    assert kind == "policy" and config.rope_scaling.kind == "llama3"
    _, changed, _ = store.load(imported("llama_llama3"), make_mesh((1, 1, 1), jax.devices()[:1]), "policy", remat="none")
    assert changed == dataclasses.replace(config, remat="none")
