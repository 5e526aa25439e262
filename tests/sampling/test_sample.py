"""The stage `sample`: resume, reproducibility from file to file, and refusals."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import jax
import pytest

from e2h_jax import stage
from e2h_jax.data import arithmetic
from e2h_jax.data.records import read_many
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template, recorded_template, write_template
from e2h_jax.data.tokenizer import build_tokenizer, load_tokenizer
from e2h_jax.errors import UserError
from e2h_jax.models import store
from e2h_jax.models.llama import LlamaConfig
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.parallel.shapes import device_bytes
from e2h_jax.sampling import sample

NEW_TOKENS = 96
ALL = (1, -1, 1)
SHAPE = LlamaConfig(100, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, max_length=160)
SHARD = "samples-00000-of-00001.jsonl"


@pytest.fixture(autouse=True, scope="module")
def one_device():
    """Unless a test asks for a mesh of its own, one device: an eighth of the compiling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "make_mesh", lambda shape, **_: make_mesh(shape, jax.devices()[:1] if shape == ALL else None))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """model/ (random weights), reward/ (a reward model) and problems.jsonl: 24 of levels 1 and 3."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = build_tokenizer(arithmetic.PIECES, folder / "tokenizer")
    config = replace(SHAPE, vocab_size=len(tokenizer))
    mesh = make_mesh(ALL, jax.devices()[:1])
    for kind, name in (("policy", "model"), ("reward", "reward")):
        store.save(folder / name, kind, config, store.create(kind, config, mesh, seed=3)[1], tokenizer)
    problems = [p for level in (1, 3) for p in arithmetic.problems(0, "test", level, 12)]
    write_records(folder / "problems.jsonl", problems)
    return folder


def config_of(world, **fields):
    config = sample.defaults()
    fields = {"samples": 12, "temperature": 1.0, "top_k": 0, "max_new_tokens": NEW_TOKENS, "rows": 24} | fields
    config.update({"model": str(world / "model"), "problems": str(world / "problems.jsonl")} | fields)
    return config


def lines(workdir):
    return (workdir / SHARD).read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sampled") / "out"
    summary = stage.execute("sample", config_of(world), workdir)
    return workdir, summary


def test_every_sample_is_there_once_and_well_formed(world, uninterrupted):
    workdir, summary = uninterrupted
    records = read_many(workdir, "sample")  # refuses duplicates
    ids = [problem["id"] for problem in read_many(world / "problems.jsonl", "problem")]
    assert {(r["problem_id"], r["sample"]) for r in records} == {(id_, i) for id_ in ids for i in range(12)}
    assert {r["finish"] for r in records} == {"stop", "length"}
    assert all(r["logprob"] < 0 and "</s>" not in r["text"] for r in records)
    assert summary["samples"] == summary["drawn_now"] == len(records) == 24 * 12
    assert summary["stopped"] == pytest.approx(sum(r["finish"] == "stop" for r in records) / len(records))
    assert 0 < summary["useful_tokens"] <= 1


def test_a_run_whose_file_was_cut_in_a_line_resumes_bit_for_bit(world, uninterrupted, tmp_path):
    whole = lines(uninterrupted[0])
    for name, cut in (("middle", len(b"".join(whole)) // 2 + 11), ("late", len(b"".join(whole)) - 1)):
        workdir = tmp_path / name
        workdir.mkdir()
        content = b"".join(whole)[:cut]
        (workdir / SHARD).write_bytes(content)
        summary = stage.execute("sample", config_of(world), workdir)
        assert summary["drawn_now"] == len(whole) - content.count(b"\n")
        assert sorted(lines(workdir)) == sorted(whole)


def test_a_run_with_holes_resumes_bit_for_bit(world, uninterrupted, tmp_path):
    """Also samples that another process wrote into its own shard are not drawn again."""
    whole = lines(uninterrupted[0])
    (tmp_path / SHARD).write_bytes(b"".join(whole[::3]))
    (tmp_path / "samples-00001-of-00002.jsonl").write_bytes(b"".join(whole[1::3]))
    summary = stage.execute("sample", config_of(world), tmp_path)
    assert summary["drawn_now"] == len(whole[2::3])
    assert sorted(lines(tmp_path)) == sorted(whole[::3] + whole[2::3])


def test_a_run_of_few_problems_resumes_with_the_shapes_of_the_whole(world, tmp_path, monkeypatch):
    """Two problems of twelve samples have groups of twelve rows; one of them alone would have been drawn by one group of 24."""
    shapes = []

    class Seen(sample.Kernel):
        def __init__(self, *arguments, **fields):
            shapes.append((fields["groups"], fields["rows"]))
            super().__init__(*arguments, **fields)

    monkeypatch.setattr(sample, "Kernel", Seen)
    summary = stage.execute("sample", config_of(world, limit=2), tmp_path / "whole")
    whole = lines(tmp_path / "whole")
    assert len(whole) == 24 and summary["rows_busy"] > 0.3
    first = json.loads(whole[0])["problem_id"]
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / SHARD).write_bytes(b"".join(line for line in whole if json.loads(line)["problem_id"] == first))
    assert stage.execute("sample", config_of(world, limit=2), tmp_path / "part")["drawn_now"] == 12
    assert sorted(lines(tmp_path / "part")) == sorted(whole)
    assert shapes == [(2, 12), (2, 12)]


def test_another_model_or_other_problems_under_the_same_name_are_refused(world, uninterrupted, tmp_path):
    begun = json.loads((uninterrupted[0] / "inputs.json").read_text())
    for name in begun:
        workdir = tmp_path / name
        workdir.mkdir()
        (workdir / SHARD).write_bytes(b"".join(lines(uninterrupted[0])[:5]))
        (workdir / "inputs.json").write_text(json.dumps(begun | {name: "0"}))
        with pytest.raises(UserError, match=f"{name} was interrupted while sampling from another model or for other problems"):
            stage.execute("sample", config_of(world), workdir)


def test_the_template_is_recorded_beside_the_samples(world, uninterrupted, tmp_path):
    """`evaluate` finds the answers by it; samples of another template are not mixed in."""
    assert recorded_template(uninterrupted[0]) == recorded_template(uninterrupted[0] / SHARD) == get_template("e2h")
    (tmp_path / SHARD).write_bytes(b"".join(lines(uninterrupted[0])[:5]))
    write_template(tmp_path / "template.json", get_template("qwen_boxed"))
    with pytest.raises(UserError, match=r'its samples were drawn in another template \("qwen_boxed", which template\.json'):
        stage.execute("sample", config_of(world), tmp_path)


def test_a_run_killed_by_kill_9_resumes_bit_for_bit(world, uninterrupted, tmp_path):
    fields, defaults, workdir = config_of(world).to_dict(), sample.defaults().to_dict(), tmp_path / "out"
    overrides = [f"--config.{name}={value}" for name, value in fields.items() if value != defaults[name]]
    command = [sys.executable, "-m", "e2h_jax.main", "sample", *overrides, f"--workdir={workdir}"]
    with open(tmp_path / "log.txt", "wb") as log:
        flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"  # the last one counts
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"XLA_FLAGS": flags})
        try:
            while process.poll() is None and not ((workdir / SHARD).exists() and (workdir / SHARD).stat().st_size):
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            assert process.wait() == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    kept = lines(workdir)
    whole = lines(uninterrupted[0])
    assert 0 < len(kept) < len(whole) and not (workdir / "done.json").exists()

    summary = stage.execute("sample", config_of(world), workdir)
    assert sorted(lines(workdir)) == sorted(whole)
    assert lines(workdir)[: len(kept) - 1] == kept[:-1]  # what was there stays; only a torn last line may go
    assert summary["drawn_now"] in (len(whole) - len(kept), len(whole) - len(kept) + 1)


def test_levels_and_limit_choose_problems_but_change_no_sample(world, uninterrupted, tmp_path):
    # Five problems of twelve samples alone would be drawn through other shapes, and their logprobs rounded differently.
    stage.execute("sample", config_of(world, levels=(3,), limit=5, rows_per_prompt=3), tmp_path / "some")
    some, whole = lines(tmp_path / "some"), lines(uninterrupted[0])
    assert len(some) == 5 * 12 and set(some) < set(whole)
    assert {json.loads(line)["problem_id"].split("/")[1] for line in some} == {"3"}


def test_more_samples_are_more_of_the_same_on_other_devices_too(world, uninterrupted, tmp_path):
    """Texts only: the compiled shapes differ, and with them the last bits of the log-probability."""
    stage.execute("sample", config_of(world, samples=5, rows=16, mesh=(2, 2, 2)), tmp_path / "few")
    texts = {(r["problem_id"], r["sample"]): r["text"] for r in read_many(uninterrupted[0], "sample")}
    few = {(r["problem_id"], r["sample"]): r["text"] for r in read_many(tmp_path / "few", "sample")}
    assert len(few) == 24 * 5 and few.items() < texts.items()


def test_another_seed_draws_other_samples(world, uninterrupted, tmp_path):
    stage.execute("sample", config_of(world, seed=1, limit=4), tmp_path / "other")
    texts = {(r["problem_id"], r["sample"]): r["text"] for r in read_many(uninterrupted[0], "sample")}
    same = [r for r in read_many(tmp_path / "other", "sample") if r["text"] == texts[r["problem_id"], r["sample"]]]
    assert len(same) < 5


@pytest.mark.parametrize(("free", "rows"), [(1e12, 288), (3e6, None), (1, 1)])
def test_rows_by_memory(world, uninterrupted, tmp_path, monkeypatch, free, rows):
    """A run that is resumed keeps to what it began with, so that it draws the same bits, whatever memory there is then."""
    monkeypatch.setattr(sample, "free_memory", lambda device, **_: free)
    monkeypatch.setattr(sample, "MOST_ROWS", 1000)
    found = stage.execute("sample", config_of(world, rows=0, limit=3 if rows == 1 else 0), tmp_path)
    chosen = json.loads((tmp_path / "chosen.json").read_text())["rows"]
    assert chosen == rows or rows is None and 3 <= chosen < 288
    texts = {(r["problem_id"], r["sample"]): r["text"] for r in read_many(uninterrupted[0], "sample")}
    assert all(record["text"] == texts[record["problem_id"], record["sample"]] for record in read_many(tmp_path, "sample"))
    if rows is None:
        whole = lines(tmp_path)
        (tmp_path / SHARD).write_bytes(b"".join(whole[:50]))
        (tmp_path / "done.json").unlink()
        monkeypatch.setattr(sample, "free_memory", lambda device, **_: 1e12)
        stage.execute("sample", config_of(world, rows=0), tmp_path)
        assert sorted(lines(tmp_path)) == sorted(whole) and found["samples"] == len(whole)


def test_the_counted_rows_are_the_arrays_that_there_are(world):
    """Caches and logits of a kernel, which is a described one."""
    config, mesh = config_of(world), make_mesh(ALL, jax.devices()[:1])
    graph, model_config, params = store.load_frozen(store.Described("policy", SHAPE), mesh, "policy")
    kernel = sample.make_kernel(config, graph, model_config, params, mesh, (2,), 50)
    described = kernel.describe(params, 50)
    arrays = device_bytes((described.prompts, described.suffixes))
    recent = 24 * 8 * 2 * 2 * 2 * 8 * 4  # rows, columns, layers, keys and values, heads, head size, bytes
    chosen = 24 * (sample.LOGITS - 1) * 4 * model_config.vocab_size  # one of these arrays is among the rows'
    small = device_bytes(described.prompts[1][1:])  # ages and the like
    needed = (arrays + recent + chosen - small) / sample.SHARE
    rows = [sample.rows_that_fit(config, model_config, mesh, 50, needed * share, 999) for share in (1.001, 0.999, 2.002)]
    assert rows == [24, 21, 48]  # three share a prompt


def test_the_time_that_is_left():
    assert sample.seconds_left(0, 320, 10, 100, 32) == pytest.approx(68)  # nothing has ended: each may take all 100
    assert sample.seconds_left(8, 320, 10, 100, 32) == pytest.approx(8)  # 40 tokens a sample, two are left
    assert sample.seconds_left(1, 320, 10, 100, 32) == pytest.approx(68)
    assert sample.seconds_left(10, 400, 10, 100, 40) == 0


def test_cpus_compute_in_float32_but_what_began_otherwise_goes_on_so(world, tmp_path):
    half = tmp_path / "half"
    config = replace(store.load_config(world / "model")[1], dtype="bfloat16")
    mesh = make_mesh(ALL, jax.devices()[:1])
    store.save(half, "policy", config, store.create("policy", config, mesh, seed=3)[1], load_tokenizer(world / "model"))
    fields = {"model": str(half), "limit": 4, "samples": 3}
    for name, dtype in (("chosen", ""), ("float32", "float32"), ("bfloat16", "bfloat16")):
        stage.execute("sample", config_of(world, **fields, dtype=dtype), tmp_path / name)
    assert lines(tmp_path / "chosen") == lines(tmp_path / "float32") != lines(tmp_path / "bfloat16")
    assert json.loads((tmp_path / "chosen/chosen.json").read_text()) == {"dtype": "float32"}
    assert not (tmp_path / "bfloat16/chosen.json").exists()
    # A run of an older version, interrupted: it was in the model's own dtype.
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / SHARD).write_bytes(b"".join(lines(tmp_path / "bfloat16")[:5]))
    stage.execute("sample", config_of(world, **fields), tmp_path / "old")
    assert sorted(lines(tmp_path / "old")) == sorted(lines(tmp_path / "bfloat16"))


def test_end_tokens_without_a_name_end_a_solution(world, tmp_path):
    """<|turn|> stands among the added tokens alone, as Llama 3's <|eot_id|>: a template's stop text or the generation config
    names it. Where nothing does, the decoder drops it, and what follows is glued on."""
    tokenizer = load_tokenizer(world / "tokenizer")
    tokenizer.backend_tokenizer.add_special_tokens(["<|turn|>"])
    shape = dict(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48, max_length=160)
    config, mesh = LlamaConfig(len(tokenizer), **shape), make_mesh(ALL, jax.devices()[:1])
    model = tmp_path / "model"
    store.save(model, "policy", config, store.create("policy", config, mesh, seed=3)[1], tokenizer)
    write_template(tmp_path / "turns.json", replace(get_template("e2h"), name="turns", stop=("<|turn|>",)))

    def drawn(name, template="e2h"):
        fields = {"model": str(model), "template": template, "limit": 4, "max_new_tokens": 40}
        summary = stage.execute("sample", config_of(world, **fields), tmp_path / name)
        return summary["stopped"], {(r["problem_id"], r["sample"]): r["text"] for r in read_many(tmp_path / name, "sample")}

    glued = drawn("glued")
    stopped = drawn("stopped", str(tmp_path / "turns.json"))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, len(tokenizer) - 1]}))
    assert drawn("listed") == stopped
    assert all(glued[1][key].startswith(text) for key, text in stopped[1].items()) and stopped[0] > glued[0] + 0.2
    assert sum(glued[1][key] != text for key, text in stopped[1].items()) > 10


def test_greedy(world, tmp_path):
    stage.execute("sample", config_of(world, samples=1, temperature=0.0), tmp_path / "greedy")
    records = read_many(tmp_path / "greedy", "sample")
    assert len(records) == 24 and {r["sample"] for r in records} == {0}


def test_a_problem_whose_prompt_is_too_long_is_named_or_dropped(world, uninterrupted, tmp_path):
    problems = read_many(world / "problems.jsonl", "problem")
    long = problems[0] | {"id": "too/long", "prefix": "a=1+1=2\n\n" * 50}
    write_records(tmp_path / "problems.jsonl", [problems[0], long, *problems[1:]])
    fields = {"problems": str(tmp_path / "problems.jsonl")}
    told = r'a prompt of \d+ tokens .*problem "too/long", the longest of 1 too long ones among 25.*config.too_long=drop'
    with pytest.raises(UserError, match=told):
        stage.execute("sample", config_of(world, **fields), tmp_path / "refused")
    assert not any((tmp_path / "refused").glob("samples-*"))
    summary = stage.execute("sample", config_of(world, **fields, too_long="drop"), tmp_path / "out")
    assert summary["dropped"] == 1
    limited = stage.execute("sample", config_of(world, **fields, too_long="drop", limit=2), tmp_path / "limited")
    assert (limited["dropped"], limited["samples"]) == (1, 12)  # the limit is of the file's problems
    assert sorted(lines(tmp_path / "out")) == sorted(lines(uninterrupted[0]))
    write_records(tmp_path / "problems.jsonl", [long])
    with pytest.raises(UserError, match=r'problem "too/long".*; lower max_new_tokens$'):
        stage.execute("sample", config_of(world, **fields, too_long="drop"), tmp_path / "none")
    with pytest.raises(UserError, match="config.too_long='zero' must be error or drop"):
        stage.execute("sample", config_of(world, too_long="zero"), tmp_path / "wrong")


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"temperature": 0.0}, r"temperature=0 draws the same solution every time; set config\.samples=1"),
        ({"temperature": -0.5}, r"config\.temperature"),
        ({"temperature": float("nan")}, r"config\.temperature and config\.top_k must be >= 0"),
        ({"min_p": float("nan")}, r"config\.min_p in \[0, 1\)"),
        ({"top_p": 0.0}, r"config\.top_p in \(0, 1\]"),
        ({"top_p": 1.5}, r"config\.top_p in \(0, 1\]"),
        ({"top_k": -1}, r"config\.top_k must be >= 0"),
        ({"samples": 0}, r"config\.samples.* must be at least 1"),
        ({"rows": -1}, r"config\.rows must be at least 0 \(0 = as many as memory allows\)"),
        ({"max_new_tokens": 0}, r"config\.max_new_tokens.* must be at least 1"),
        ({"prompt_bucket": 0}, r"config\.prompt_bucket.* must be at least 1"),
        ({"limit": -1}, r"config\.limit .*must be at least 0"),
        ({"max_new_tokens": 150}, r"a prompt of \d\d tokens and config\.max_new_tokens=150 exceed the model's 160 positions"),
        ({"levels": (2,)}, r"no problem has level 2; the levels present are: 1, 3"),
        ({"model": "reward"}, r"reward holds a reward model where a policy is needed"),
        ({"model": "nothing"}, r"nothing holds no model"),
        ({"problems": "nothing.jsonl"}, r"nothing\.jsonl: there is no such file"),
        ({"template": "e3h"}, r'there is no template "e3h" \(did you mean "e2h"\?\)'),
        ({"mesh": (1, 3, 1)}, r"needs 3 devices but 8 are there"),
        ({"mesh": (1, 1, 8)}, r"does not divide the key/value heads"),
        ({"dtype": "bfloat17"}, r"config\.dtype=.bfloat17. must be float32 or bfloat16"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_in_a_sentence_before_anything_is_written(world, tmp_path, fields, sentence):
    fields |= {name: str(world / fields[name]) for name in ("model", "problems") if name in fields}
    with pytest.raises(UserError, match=sentence):
        stage.execute("sample", config_of(world, **fields), tmp_path / "out")
    assert not any((tmp_path / "out").glob("samples-*")) or not lines(tmp_path / "out")
    assert not (tmp_path / "out" / "done.json").exists()


def test_a_damaged_line_is_named_and_nothing_is_lost(world, uninterrupted, tmp_path):
    whole = lines(uninterrupted[0])
    content = b"".join([*whole[:3], whole[3][:20] + b"\n", *whole[4:9]])
    (tmp_path / SHARD).write_bytes(content)
    with pytest.raises(UserError, match=rf"{SHARD}:4: not a record"):
        stage.execute("sample", config_of(world), tmp_path)
    assert (tmp_path / SHARD).read_bytes() == content


def test_samples_drawn_by_an_earlier_version_are_taken_up(tmp_path):
    """… whose record lacks the fields that are new, and those in another template are not."""
    record = {name: value for name, value in asdict(get_template("e2h")).items() if name != "trim"}
    (tmp_path / "template.json").write_text(json.dumps(record))
    sample.keep_template(tmp_path, get_template("e2h"), resumed=True, write=True)
    with pytest.raises(UserError, match='another template ."e2h"'):
        sample.keep_template(tmp_path, get_template("qwen_boxed"), resumed=True, write=True)
    assert json.loads((tmp_path / "template.json").read_text()) == json.loads(json.dumps(record))
    sample.keep_template(tmp_path, get_template("qwen_boxed"), resumed=False, write=False)
    assert recorded_template(tmp_path) == get_template("e2h")
    sample.keep_template(tmp_path, get_template("qwen_boxed"), resumed=False, write=True)
    assert recorded_template(tmp_path) == get_template("qwen_boxed")
