"""Files of the Hub and of ours with something wrong in them: one sentence that names file and field; nothing is left behind.

What is right passes: null for an absent field, a tokenizer with fewer ids than embeddings.
"""

import json

import jax
import pytest

from e2h_jax.algorithms import sft
from e2h_jax.data.storage import write_records
from e2h_jax.data.tokenizer import load_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.models import hub, store
from e2h_jax.models.families import ROPE_TYPES, ROPE_USES, TYPES, read_config
from e2h_jax.parallel.mesh import make_mesh

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 1842767\n"


def edit(name, **changes):
    def apply(folder):
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))

    return apply


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def cut(name, length):
    return lambda folder: (folder / name).write_text((folder / name).read_text()[:length])


def ends_by_config(value):
    def apply(folder):
        (folder / "generation_config.json").unlink()
        edit("config.json", eos_token_id=value)(folder)

    return apply


def with_id(token, number):
    def apply(folder):
        path = folder / "tokenizer.json"
        document = json.loads(path.read_text())
        document["model"]["vocab"][token] = number
        path.write_text(json.dumps(document))

    return apply


INDEX = "model.safetensors.index.json"
BAD = {
    "head_dim": (edit("config.json", head_dim="16"), r'config\.json: head_dim is "16", which is not a whole number\.'),
    "odd head_dim": (edit("config.json", head_dim=15), "heads of size 15 cannot be rotated; head_dim must be even"),
    "no heads": (edit("config.json", num_attention_heads=None), "num_attention_heads is None, which is not a whole number"),
    "true layers": (edit("config.json", num_hidden_layers=True), "num_hidden_layers is true, which is not a whole number"),
    "eps": (edit("config.json", rms_norm_eps="1e-6"), 'rms_norm_eps is "1e-6", which is not a number above 0'),
    "nan": (write("config.json", '{"model_type": "llama", "rms_norm_eps": NaN}'), "rms_norm_eps is NaN, which is not a number"),
    "tied": (edit("config.json", tie_word_embeddings="false"), 'tie_word_embeddings is "false", which is not true or false'),
    "family": (edit("config.json", model_type=["llama"]), r'model_type is \["llama"\], which is not a text'),
    "classes": (edit("config.json", architectures={"a": 1}), "architectures is .*, which is not a list of texts"),
    "rope list": (edit("config.json", rope_scaling=[1, 2]), r"rope_scaling is \[1, 2\], which is not an object"),
    "rope text": (edit("config.json", rope_scaling="linear"), 'rope_scaling is "linear", which is not an object'),
    "rope factor": (
        edit("config.json", rope_scaling={"type": "linear", "factor": "2"}),
        r'config\.json: rope_scaling: factor is "2", which is not a number above 0',
    ),
    "rope kind": (edit("config.json", rope_scaling={"rope_type": 3}), "rope_scaling: rope_type is 3, which is not a text"),
    "no object": (write("config.json", "[]"), r"config\.json is damaged \(it holds no object\)"),
    "empty config": (write("config.json", ""), r"config\.json is empty; download it again"),
    "null index": (edit(INDEX, weight_map=None), None),  # model.safetensors is there
    "index list": (edit(INDEX, weight_map=["a"]), r"index\.json: weight_map is .*, which is not an object of texts"),
    "index numbers": (edit(INDEX, weight_map={"a": 3}), "which is not an object of texts"),
    "weights pointer": (write("model.safetensors", POINTER), r"model\.safetensors is a pointer of Git LFS.*`git lfs pull`"),
    "weights empty": (write("model.safetensors", ""), r"model\.safetensors is empty; download it again"),
    "tokenizer pointer": (write("tokenizer.json", POINTER), r"tokenizer\.json is a pointer of Git LFS"),
    "tokenizer empty": (write("tokenizer.json", ""), r"tokenizer\.json is empty"),
    "tokenizer cut": (cut("tokenizer.json", 500), r"tokenizer\.json is damaged"),
    "tokenizer of nothing": (write("tokenizer.json", "{}"), r"tokenizer\.json holds no tokenizer that can be read"),
    "tiktoken beside it": (write("tokenizer.model", "IQ== 0"), None),
    "sentencepiece of nothing": (
        lambda folder: (folder / "tokenizer.json").rename(folder / "tokenizer.model"),
        r"tokenizer\.model holds no tokenizer that can be read",
    ),
    "sentencepiece pointer": (write("tokenizer.model", POINTER), r"tokenizer\.model is a pointer of Git LFS"),
    "settings cut": (cut("tokenizer_config.json", 20), r"tokenizer_config\.json is damaged"),
    "generation": (write("generation_config.json", "[2]"), r"generation_config\.json is damaged \(it holds no object\)"),
    "end": (edit("generation_config.json", eos_token_id="2"), r'generation_config\.json: eos_token_id holds "2", which is not'),
    "end by config": (ends_by_config("2"), r'hub/config\.json: eos_token_id holds "2", which is not the id of a token\.'),
    "ends by config": (ends_by_config([2, None]), r"hub/config\.json: eos_token_id holds null, which is not the id of a token"),
    "no end": (ends_by_config(-1), r"hub/config\.json: eos_token_id holds -1, which is not the id of a token"),
    "end unused": (edit("config.json", eos_token_id="2"), None),  # generation_config.json is there
    "ends": (ends_by_config([2, 5]), None),
    "null end": (ends_by_config(None), None),
    "another family": (
        edit("config.json", model_type="deci", num_key_value_heads=[4, 2]),
        r"config\.json: model_type 'deci' is not supported",
    ),
    "id beyond": (with_id("far", 48), r"hub: the tokenizer has ids up to 48, but the model has embeddings of 48 ids, up to 47"),
    "last id": (with_id("far", 47), None),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_source(name, make_hub, run_convert, tmp_path):
    spoil, message = BAD[name]
    make_hub(tmp_path / "hub", "llama")
    spoil(tmp_path / "hub")
    if message is None:
        run_convert(tmp_path / "hub", tmp_path / "out")
        return
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=message) as error:
        run_convert(tmp_path / "hub", tmp_path / "out")
    assert "\n" not in str(error.value) and list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("vocabulary", ['[["a", 0.0], ["b", 0.1]]', '{"a": 0, "b": 1}'])
def test_the_largest_id_of_a_vocabulary(vocabulary, tmp_path):
    (tmp_path / "tokenizer.json").write_text(f'{{"model": {{"vocab": {vocabulary}}}}}')
    assert hub.largest_id(tmp_path) == 1


def test_cropping_spares_the_tokenizers_ids(make_hub, run_convert, tmp_path):
    make_hub(tmp_path / "hub", "llama_padded")
    largest = max(load_tokenizer(tmp_path / "hub").get_vocab().values())
    with pytest.raises(UserError, match=rf"config\.vocab_size={largest} cuts off ids .*, which go up to {largest}; raise it"):
        run_convert(tmp_path / "hub", tmp_path / "cut", vocab_size=largest)
    run_convert(tmp_path / "hub", tmp_path / "whole", vocab_size=largest + 1)


@pytest.mark.parametrize(
    ("dtype", "computes"), [("", "bfloat16"), ("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "bfloat16")]
)
def test_a_model_computes_in_the_dtype_it_was_imported_in(make_hub, run_convert, tmp_path, dtype, computes):
    make_hub(tmp_path / "hub", "llama")
    edit("config.json", dtype="bfloat16")(tmp_path / "hub")
    run_convert(tmp_path / "hub", tmp_path, dtype=dtype)
    assert store.load_config(tmp_path / "model")[1].dtype == computes


WRONG = {
    "a whole number": ("7", 7.0, True, [7]),
    "a whole number above 0": ("7", 7.0, 0, -7, True, [7]),
    "a number": ("7", True, float("nan"), [7]),
    "a number above 0": ("7", True, float("inf"), 0, -1.0, {}),
    "true or false": ("true", 0, 1),
    "a text": (7, ["llama"], {}, True),
    "a list of texts": ("llama", [7], {}),
    "an object": ([], "linear", 7),
}
WHOLE = {
    **{"model_type": "llama", "vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 40, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
}


@pytest.mark.parametrize("name", TYPES)
def test_every_field_of_config_json_is_checked_by_type(name):
    for value in WRONG[TYPES[name]]:
        with pytest.raises(UserError, match=rf"^here: {name} is .*, which is not {TYPES[name]}\.$"):
            read_config(WHOLE | {name: value}, "here")


@pytest.mark.parametrize("name", ROPE_TYPES)
def test_every_field_of_rope_scaling_is_checked_by_type(name):
    for group in ("rope_scaling", "rope_parameters"):
        for value in WRONG[ROPE_TYPES[name]]:
            with pytest.raises(UserError, match=rf"^here: {group}: {name} is .*, which is not {ROPE_TYPES[name]}\.$"):
                read_config(WHOLE | {group: {"rope_type": "linear", "factor": 2.0, name: value}}, "here")


ROPE = {
    **{"factor": 2, "original_max_position_embeddings": 64, "low_freq_factor": 1, "high_freq_factor": 4},
    **{"beta_fast": 32, "beta_slow": 1, "attention_factor": 1, "truncate": True},
}


@pytest.mark.parametrize("kind", ROPE_USES)
@pytest.mark.parametrize("name", sorted(set(ROPE) - {"truncate"}))
def test_what_is_read_of_rope_scaling_can_be_loaded(kind, name, tmp_path):
    """Whole numbers, and one of them written with a point."""
    for value in (ROPE[name], float(ROPE[name])):
        try:
            config = read_config(WHOLE | {"rope_scaling": ROPE | {"rope_type": kind, name: value}}, "here")
        except UserError as error:
            assert name == "original_max_position_embeddings" and type(value) is float and "which is not a whole" in str(error)
        else:
            store.save_description(tmp_path, "policy", config)
            assert store.load_config(tmp_path) == ("policy", config)


def test_null_is_an_absent_field():
    needed = {"model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
    assert read_config(WHOLE | dict.fromkeys(TYPES.keys() - needed - {"rope_scaling"}), "here") == read_config(WHOLE, "here")


def model_json(**changes):
    def apply(folder):
        path = folder / "model.json"
        document = json.loads(path.read_text())
        document["config"] |= changes
        path.write_text(json.dumps(document))

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write("model.json", '{"kind'), r"model\.json does not describe a model \(.*\); it is damaged, or of a newer version"),
        (write("model.json", "[]"), "does not describe a model"),
        (write("model.json", '{"kind": "policy"}'), "does not describe a model"),
        (write("model.json", '{"kind": "policy", "config": {"vocab_size": 48}}'), "does not describe a model"),
        (model_json(experts=8), "does not describe a model .*experts.* newer version of e2h_jax"),
        (model_json(head_dim="16"), "head_dim is '16'; the file is damaged, convert or train"),
        (model_json(layers=True), "layers is True; the file is damaged"),
        (model_json(rope_scaling={"kind": "linear", "factor": "2"}), "factor is '2'; the file is damaged"),
        (model_json(rope_base=10_000), None),
        (edit("model.json", kind="judge"), "kind is 'judge', which is neither policy nor reward; .* convert or"),
        (with_id("far", 99), "the tokenizer has ids up to 99, but the model has embeddings of 48 ids"),
        (write("tokenizer.json", '{"model": {"vocab": [["a", 0.0], ["b", 0.1]]}}'), None),
        (write("tokenizer.json", '{"model": {"vocab": {"a": "1"}}}'), "vocabulary holds the id '1'"),
        (write("tokenizer.json", '{"added_tokens": [{"content": "<x>", "id": 48}]}'), "the tokenizer has ids up to 48"),
        (write("tokenizer.json", '{"added_tokens": [7]}'), "added_tokens holds 7, which is no token with content and id"),
    ],
)
def test_a_model_of_ours_is_checked_wherever_it_is_loaded(make_hub, run_convert, tmp_path, spoil, message):
    make_hub(tmp_path / "hub", "llama")
    run_convert(tmp_path / "hub", tmp_path)
    spoil(tmp_path / "model")
    if message is None:
        store.load(tmp_path / "model", make_mesh((1, 1, 1), jax.devices()[:1]), "policy")
        return
    with pytest.raises(UserError, match=message):
        store.load(tmp_path / "model", make_mesh((1, 1, 1), jax.devices()[:1]), "policy")


def test_sft_refuses_a_tokenizer_beyond_the_embedding(make_hub, run_convert, tmp_path):
    """It said that the loss was nan, and to lower the learning rate."""
    make_hub(tmp_path / "hub", "llama")
    run_convert(tmp_path / "hub", tmp_path)
    with_id("far", 99)(tmp_path / "model")
    problem = {"id": "a", "question": "a=1", "answer": "1", "level": 1, "solution": "# Answer\n\n1"}
    write_records(tmp_path / "data.jsonl", [problem])
    config = sft.defaults().unlock()
    config.update({"init": str(tmp_path / "model"), "data": str(tmp_path / "data.jsonl"), "length": 64, "batch_size": 8})
    with pytest.raises(UserError, match="model: the tokenizer has ids up to 99"):
        sft.run(config, tmp_path / "sft")
    config.update({"init": "", "tokenizer": str(tmp_path / "model"), "preset": "llemma_7b"})
    with_id("far", 32016)(tmp_path / "model")
    with pytest.raises(UserError, match="the tokenizer has ids up to 32016, but the model has embeddings of 32016 ids"):
        sft.run(config, tmp_path / "sft")
