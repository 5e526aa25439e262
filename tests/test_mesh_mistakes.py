"""Meshes that do not fit are refused by every stage in one sentence, before a parameter is read or a program compiled."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from e2h_jax import stage
from e2h_jax.data import arithmetic
from e2h_jax.data.storage import write_records
from e2h_jax.data.tokenizer import build_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.models import arrays, store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.checks import check_hosts

SHAPE = LlamaConfig(vocab_size=64, width=64, layers=2, heads=4, kv_heads=4, head_dim=8, mlp_width=64, max_length=512)
SHAPES = {
    "good": {},
    "kv": {"kv_heads": 2},
    "mlp": {"mlp_width": 66},
    "vocabulary": {"vocab_size": 70},
    "width": {"width": 60},
}

# Where a stage names its model, and what else it needs to get so far.
STAGES = {
    "sft": ("init", {"data": "solved"}),
    "reward": ("init", {"data": "labelled"}),
    "sample": ("model", {"problems": "questions"}),
    "score": ("model", {"problems": "questions", "samples": "samples"}),
    "dpo": ("init", {"questions": "questions", "margin": 0.5}),
    "rest_em": ("init", {"questions": "questions"}),
    "ppo": ("init", {"questions": "questions", "reward.process": "none"}),
}

MESHES = [
    ("good", (4, 1, 1), r"config\.mesh=\(4, 1, 1\) needs 4 devices but 8 are there"),
    ("good", (3, -1, 1), r"config\.mesh=\(3, -1, 1\) does not fit 8 devices"),
    ("kv", (1, 2, 4), r"mesh=\(1, 2, 4\): its tensor axis of 4 does not divide the key/value heads of .*kv, 2; .* such as 2"),
    ("mlp", (1, 2, 4), r"tensor axis of 4 does not divide the feed-forward width of .*mlp, 66; .* such as 2"),
    ("vocabulary", (1, 2, 4), r"tensor axis of 4 does not divide the vocabulary of .*vocabulary, 70; .* such as 2"),
    ("width", (1, 8, 1), r"fsdp axis of 8 does not divide the width of .*width, 60; .* such as 4"),
]  # fmt: skip

SHARDS = r"does not divide by 8, the shards along \(data, fsdp\) of config\.mesh=\(1, 8, 1\)"
ROWS = [
    ("sft", {"batch_size": 12}, r"config\.batch_size=12 does not divide by 8"),
    ("sft", {"batch_size": 8, "microbatches": 2}, r"config\.batch_size=8 does not divide by 16 = config\.microbatches 2 x 8"),
    ("reward", {"batch_size": 12}, r"config\.batch_size=12 does not divide by 8"),
    ("sample", {"rows": 12}, rf"config\.rows=12 {SHARDS}"),
    ("score", {"tokens_per_batch": 500}, r"config\.tokens_per_batch=500 is less than a row of config\.length_bucket=64"),
    (
        "score",
        {"tokens_per_batch": 1024, "row_length": 256},
        r"config\.tokens_per_batch=1024 is less than a row of config\.row_length=256",
    ),
    ("dpo", {"train.batch_size": 12}, r"config\.train\.batch_size=12 does not divide by 8"),
    ("dpo", {"sample.rows": 12}, rf"config\.sample\.rows=12 {SHARDS}"),
    ("rest_em", {"train.batch_size": 12}, r"config\.train\.batch_size=12 does not divide by 8"),
    ("ppo", {"forward_rows": 12}, rf"config\.forward_rows=12 {SHARDS}"),
    ("ppo", {"update_rows": 12}, rf"config\.update_rows=12 {SHARDS}"),
    ("ppo", {"sample.rows": 12}, rf"config\.sample\.rows=12 {SHARDS}"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models without parameters: `model.json` and a tokenizer."""
    for name in STAGES:
        stage.load(name)  # its modules are imported
    folder = tmp_path_factory.mktemp("models")
    tokenizer = build_tokenizer(arithmetic.PIECES, folder / "tokenizer")
    for kind in store.KINDS:
        for name, changes in SHAPES.items():
            model = folder / kind / name
            tokenizer.save_pretrained(model)
            store.save_description(model, kind, dataclasses.replace(SHAPE, **changes))
    write_records(folder / "questions.jsonl", arithmetic.problems(0, "test", 1, 8))
    return folder


@pytest.fixture(autouse=True)
def nothing_is_loaded_or_compiled(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("too late")

    monkeypatch.setattr(store.ocp, "load", refuse)
    monkeypatch.setattr(arrays, "layerwise", refuse)
    monkeypatch.setattr(jax, "jit", refuse)


def refused(name, folder, model, fields, sentence):
    module = stage.load(name)
    config = module.defaults()
    where, needs = STAGES[name]
    kind = "reward" if name == "score" else "policy"
    files = {field: str(folder / f"{value}.jsonl") if value in ("questions", "solved", "labelled", "samples") else value
             for field, value in needs.items()}  # fmt: skip
    for field, value in ({where: str(folder / kind / model)} | files | fields).items():
        *groups, last = field.split(".")
        group = config
        for part in groups:
            group = group[part]
        group[last] = value
    with pytest.raises(UserError, match=sentence) as error:
        module.run(config, folder / "workdir")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(("model", "mesh", "sentence"), MESHES)
def test_meshes(folder, name, model, mesh, sentence):
    refused(name, folder, model, {"mesh": mesh}, sentence)


@pytest.mark.parametrize(("name", "fields", "sentence"), ROWS)
def test_rows(folder, name, fields, sentence):
    refused(name, folder, "good", {"mesh": (1, 8, 1)} | fields, sentence)


def test_the_models_beside_the_policy(folder):
    for name, fields in {
        "rest_em": {"reward_model": str(folder / "reward" / "kv")},
        "dpo": {"reward_model": str(folder / "reward" / "kv")},
        "ppo": {"reward.process": "min", "reward.model": str(folder / "reward" / "kv")},
    }.items():
        refused(name, folder, "good", fields | {"mesh": (1, 2, 4)}, r"key/value heads of .*reward/kv, 2")
    scored = {"reward_model": str(folder / "reward" / "good"), "score.tokens_per_batch": 500, "mesh": (1, 8, 1)}
    refused("rest_em", folder, "good", scored, r"config\.score\.tokens_per_batch=500 is less than a row of config\.score")
    refused("rest_em", folder, "good", {"base": str(folder / "policy" / "kv"), "mesh": (1, 2, 4)}, r"heads of .*policy/kv, 2")
    refused("ppo", folder, "good", {"value_init": str(folder / "policy" / "kv"), "mesh": (1, 2, 4)}, r"heads of .*policy/kv, 2")


def test_hosts_that_share_some_rows_but_not_all():
    def mesh(fsdp, tensor):  # of two hosts
        count = fsdp * tensor
        devices = np.array([SimpleNamespace(process_index=2 * index // count) for index in range(count)])
        return SimpleNamespace(devices=devices.reshape(1, fsdp, tensor), shape={"data": 1, "fsdp": fsdp, "tensor": tensor})

    for shape in ((2, 4), (4, 2), (1, 8), (6, 1)):
        check_hosts(mesh(*shape))
    with pytest.raises(UserError, match=r"config\.mesh=\(1, 3, 2\) cuts rows across hosts that share others: choose a tens"):
        check_hosts(mesh(3, 2))
