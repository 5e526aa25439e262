"""The stage `score`: from samples to scored records."""

import json
from itertools import pairwise

import jax
import numpy as np
import pytest

from e2h_jax import stage
from e2h_jax.data.records import read_many
from e2h_jax.data.steps import encode_solution, split_steps
from e2h_jax.data.storage import write_records
from e2h_jax.data.templates import get_template
from e2h_jax.errors import UserError
from e2h_jax.models import store
from e2h_jax.parallel.mesh import make_mesh
from e2h_jax.rewards import score

E2H = get_template("e2h")
SHARD = "scored-00000-of-00001.jsonl"
ALL = (1, -1, 1)


@pytest.fixture(autouse=True, scope="module")
def one_device():
    """Unless a test asks for a mesh of its own, one device: an eighth of the compiling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "make_mesh", lambda shape, **_: make_mesh(shape, jax.devices()[:1] if shape == ALL else None))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory, judge, judge_of, tokenizers, texts):
    """reward/ and bpe/ (reward models), policy/, problems.jsonl and samples/ in two shards."""
    folder = tmp_path_factory.mktemp("world")
    for name, model in (("reward", judge), ("bpe", judge_of(tokenizers["bpe"]))):
        store.save(folder / name, "reward", model.config, model.params, model.tokenizer)
    policy = store.create("policy", judge.config, judge.mesh, 0)[1]
    store.save(folder / "policy", "policy", judge.config, policy, judge.tokenizer)
    problems = {problem["id"]: problem for problem, _ in texts}
    write_records(folder / "problems.jsonl", problems.values())
    samples = [
        {"problem_id": problem["id"], "sample": index, "text": text, "finish": "stop", "logprob": -1.5, "extra": [index]}
        for index, (problem, text) in enumerate(texts)
    ]
    for shard in range(2):
        write_records(folder / "samples" / f"samples-{shard:05d}-of-00002.jsonl", samples[shard::2])
    return folder


def config_of(world, **fields):
    config = score.defaults()
    paths = {"model": "reward", "samples": "samples", "problems": "problems.jsonl"}
    paths = {name: str(world / fields.pop(name, path)) for name, path in paths.items()}
    config.update(paths | {"tokens_per_batch": 256, "length_bucket": 32} | fields)
    return config


def logged(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def lines(workdir):
    return (workdir / SHARD).read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("scored") / "out"
    summary = stage.execute("score", config_of(world), workdir)
    return workdir, summary


def test_every_sample_is_scored_once_and_keeps_its_fields(world, uninterrupted):
    workdir, summary = uninterrupted
    samples = {(r["problem_id"], r["sample"]): r for r in read_many(world / "samples", "sample")}
    scored = {(r["problem_id"], r["sample"]): r for r in read_many(workdir, "scored")}
    assert summary["solutions"] == summary["scored_now"] == len(samples)
    assert {key: r | {"step_scores": scored[key]["step_scores"]} for key, r in samples.items()} == scored
    for record in scored.values():
        steps = split_steps(record["text"], E2H)
        ended = bool(steps) and steps[-1].is_answer
        assert len(record["step_scores"]) == len(steps) + (not ended)
        assert (record["step_scores"][-1] == 0.0) == (not ended)
    steps = [0, *(line["step"] for line in logged(workdir))]
    assert all(earlier < later for earlier, later in pairwise(steps)) and steps[-1] == len(samples)
    assert all(line["solutions_per_second"] > 0 for line in logged(workdir))


@pytest.mark.parametrize("name", ["reward", "bpe"])
def test_scores_are_those_of_a_forward_pass_with_the_reward_models_own_tokenizer(
    world, tmp_path, judge, judge_of, tokenizers, name
):
    model = judge if name == "reward" else judge_of(tokenizers["bpe"])
    stage.execute("score", config_of(world, model=name, read_at="min3"), tmp_path / "out")
    questions = {problem["id"]: problem["question"] for problem in read_many(world / "problems.jsonl", "problem")}
    scored = read_many(tmp_path / "out", "scored")
    for record in scored[::6] + [r for r in scored if r["sample"] >= 40]:
        solution = encode_solution(model.tokenizer, questions[record["problem_id"]], record["text"], E2H, add_eos=False)
        assert record["step_scores"] == pytest.approx(model.plain_scores(solution, "min3"), abs=1e-5)


def test_a_run_whose_file_was_cut_in_a_line_resumes_bit_for_bit(world, uninterrupted, tmp_path):
    whole = lines(uninterrupted[0])
    for name, cut in (("middle", len(b"".join(whole)) // 2 + 11), ("late", len(b"".join(whole)) - 1)):
        workdir = tmp_path / name
        workdir.mkdir()
        content = b"".join(whole)[:cut]
        (workdir / SHARD).write_bytes(content)
        summary = stage.execute("score", config_of(world), workdir)
        assert summary["scored_now"] == len(whole) - content.count(b"\n") > 0
        assert sorted(lines(workdir)) == sorted(whole)


def test_a_refusal_of_the_first_solution_can_be_mended_in_its_folder(world, tmp_path, monkeypatch):
    def broken(*_):
        raise UserError("a number that is not finite")
        yield

    with monkeypatch.context() as patch, pytest.raises(UserError, match="not finite"):
        patch.setattr(score.Scorer, "score", broken)
        stage.execute("score", config_of(world), tmp_path)
    stage.execute("score", config_of(world, length_bucket=128), tmp_path)


def test_a_run_with_holes_resumes_bit_for_bit(world, uninterrupted, tmp_path):
    whole = lines(uninterrupted[0])
    (tmp_path / SHARD).write_bytes(b"".join(whole[1::3]))
    stage.execute("score", config_of(world), tmp_path)
    assert sorted(lines(tmp_path)) == sorted(whole)


def test_a_resumed_run_computes_the_very_same_batches(world, tmp_path, monkeypatch):
    """Of those that have something missing: in packed rows the last bits depend on the neighbours."""
    computed, compute = [], score.Scorer.logits
    monkeypatch.setattr(score.Scorer, "logits", lambda *some: computed.append(some[1].tokens.tobytes()) or compute(*some))
    fields = {"row_length": 300, "tokens_per_batch": 600}
    stage.execute("score", config_of(world, **fields), tmp_path / "whole")
    whole, scored = list(computed), lines(tmp_path / "whole")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / SHARD).write_bytes(b"".join(scored[1:]))
    computed.clear()
    stage.execute("score", config_of(world, **fields), tmp_path / "part")
    assert len(whole) > 1 == len(computed) and computed[0] in whole
    assert sorted(lines(tmp_path / "part")) == sorted(scored)


def test_nothing_missing_is_no_mistake(world, uninterrupted, tmp_path):
    (tmp_path / SHARD).write_bytes(b"".join(lines(uninterrupted[0])))
    summary = stage.execute("score", config_of(world), tmp_path)
    assert summary["scored_now"] == 0 and lines(tmp_path) == lines(uninterrupted[0])
    assert logged(tmp_path) == []


def test_tokens_by_memory(world, uninterrupted, tmp_path, monkeypatch):
    """At least a row of the longest solution; a resumed run keeps to what it began with."""
    found = []
    for free in (1, 1e12):
        monkeypatch.setattr(score, "free_memory", lambda device, free=free, **_: free)
        workdir = tmp_path / f"{free}"
        stage.execute("score", config_of(world, tokens_per_batch=0), workdir)
        found.append(json.loads((workdir / "chosen.json").read_text())["tokens_per_batch"])
        whole = lines(workdir)
        assert [json.loads(line)["problem_id"] for line in sorted(whole)] == [
            json.loads(line)["problem_id"] for line in sorted(lines(uninterrupted[0]))
        ]
    assert found[0] % 32 == 0 and found[0] < 1024 and found[1] == 16_384
    (workdir / SHARD).write_bytes(b"".join(whole[:3]))
    (workdir / "done.json").unlink()
    monkeypatch.setattr(score, "free_memory", lambda device, **_: 1)
    stage.execute("score", config_of(world, tokens_per_batch=0), workdir)
    assert sorted(lines(workdir)) == sorted(whole)


def test_eight_devices_give_one_devices_scores(world, uninterrupted, tmp_path):
    stage.execute("score", config_of(world, mesh=(2, 2, 2), length_bucket=128, tokens_per_batch=512), tmp_path / "out")
    expected = {(r["problem_id"], r["sample"]): r["step_scores"] for r in read_many(uninterrupted[0], "scored")}
    for record in read_many(tmp_path / "out", "scored"):
        assert record["step_scores"] == pytest.approx(expected[record["problem_id"], record["sample"]], abs=1e-5)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"model": "policy"}, r"policy holds a policy model where a reward model is needed"),
        ({"model": "nothing"}, r"nothing holds no model"),
        ({"samples": "reward"}, r"reward: this folder has no samples-\*\.jsonl"),
        ({"samples": "nothing"}, r"nothing: there is no such file"),
        ({"problems": "nothing.jsonl"}, r"nothing\.jsonl: there is no such file"),
        ({"read_at": "separator_lst"}, r"'separator_lst' is unknown \(did you mean .separator_last.\?\)"),
        ({"template": "e3h"}, r'there is no template "e3h"'),
        ({"length_bucket": 0}, r"config\.length_bucket.* must be at least 1"),
        ({"tokens_per_batch": -1}, r"config\.tokens_per_batch and config\.row_length at least 0"),
        ({"mesh": (3, 1, 1)}, r"needs 3 devices but 8 are there"),
        ({"dtype": "half"}, r"config\.dtype='half' must be float32 or bfloat16"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_in_a_sentence(world, tmp_path, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        stage.execute("score", config_of(world, **fields), tmp_path / "out")
    assert not (tmp_path / "out" / "done.json").exists()


def test_samples_of_other_problems_are_refused(world, tmp_path):
    stranger = {"problem_id": "gsm8k/7", "sample": 0, "text": "1", "finish": "stop", "logprob": None}
    write_records(tmp_path / "samples.jsonl", [*read_many(world / "samples", "sample")[:3], stranger])
    with pytest.raises(UserError, match=r"problem_id 'gsm8k/7' is not in .*problems\.jsonl"):
        stage.execute("score", config_of(world, samples=tmp_path / "samples.jsonl"), tmp_path / "out")
    assert not any((tmp_path / "out").glob("scored-*.jsonl")) or lines(tmp_path / "out") == []


def test_a_solution_longer_than_the_model_is_refused(world, tmp_path):
    problem = read_many(world / "problems.jsonl", "problem")[0]
    text = "a=1+1=2\n\n" * 60
    sample = {"problem_id": problem["id"], "sample": 0, "text": text, "finish": "length", "logprob": None}
    write_records(tmp_path / "samples.jsonl", [sample])
    which = f'problem "{problem["id"]}", sample 0, the longest of 1 too long ones among 1'
    with pytest.raises(UserError, match=rf"a solution has \d+ tokens, more than the model's 400 positions .{which}"):
        stage.execute("score", config_of(world, samples=tmp_path / "samples.jsonl"), tmp_path / "out")


def test_solutions_too_long_may_score_zero(world, uninterrupted, judge, tmp_path):
    """All others are scored as without them; a resumed run does not score them again."""
    samples = read_many(world / "samples", "sample")
    long = [samples[0] | {"sample": 900 + n, "text": "a=1+1=2\n\n" * 60 + end} for n, end in enumerate(("", "# Answer\n\n2"))]
    write_records(tmp_path / "samples.jsonl", [long[0], *samples[:9], long[1]])
    fields = {"samples": tmp_path / "samples.jsonl", "too_long": "zero"}
    summary = stage.execute("score", config_of(world, **fields), tmp_path / "out")
    assert (summary["too_long"], summary["solutions"], summary["scored_now"]) == (2, 11, 11)
    # No rate counts those, which are not computed.
    assert logged(tmp_path / "out")[0]["step"] > 2
    questions = {problem["id"]: problem["question"] for problem in read_many(world / "problems.jsonl", "problem")}
    written = [(questions[sample["problem_id"]], sample["text"]) for sample in samples[:9]]
    lengths = [len(encode_solution(judge.tokenizer, *solution, E2H, add_eos=False).tokens) for solution in written]
    assert summary["tokens_per_second"] / summary["solutions_per_second"] == pytest.approx(np.mean(lengths))
    scores = {(r["problem_id"], r["sample"]): r["step_scores"] for r in read_many(tmp_path / "out", "scored")}
    assert scores.pop((samples[0]["problem_id"], 900)) == scores.pop((samples[0]["problem_id"], 901)) == [0.0] * 61
    expected = {(r["problem_id"], r["sample"]): r["step_scores"] for r in read_many(uninterrupted[0], "scored")}
    assert len(scores) == 9 and all(values == pytest.approx(expected[key], abs=1e-6) for key, values in scores.items())
    with pytest.raises(UserError, match="more than config.row_length=70 .*; raise it, or set config.too_long=zero"):
        stage.execute("score", config_of(world, samples=tmp_path / "samples.jsonl", row_length=70), tmp_path / "row")
    with pytest.raises(UserError, match="config.too_long='drop' must be error or zero"):
        stage.execute("score", config_of(world, too_long="drop"), tmp_path / "drop")


def test_a_problem_s_prefix_is_read_and_not_scored(world, uninterrupted, tmp_path):
    """A tail behind a prefix has the scores that it has in the whole solution."""
    problems = {problem["id"]: problem for problem in read_many(world / "problems.jsonl", "problem")}
    made, tails, expected = [], [], []
    for record in read_many(uninterrupted[0], "scored"):
        steps = split_steps(record["text"], E2H)
        if len(steps) < 3:
            continue
        cut = len(made) % 2 + 1
        text, identity = record["text"], f"tail/{len(made)}"
        made.append(problems[record["problem_id"]] | {"id": identity, "prefix": text[: steps[cut - 1].end]})
        tails.append({"problem_id": identity, "sample": 0, "text": text[steps[cut].start :], "finish": "stop"})
        expected.append(record["step_scores"][cut:])
        if len(made) == 9:
            break
    # Within the answer the answer's score is all that there is.
    answered = next(record for record in read_many(uninterrupted[0], "scored") if "# Answer\n\n" in record["text"])
    head, _, tail = answered["text"].partition("# Answer\n\n")
    made.append(problems[answered["problem_id"]] | {"id": "tail/answer", "prefix": f"{head}# Answer"})
    tails.append({"problem_id": "tail/answer", "sample": 0, "text": tail, "finish": "stop"})
    expected.append(answered["step_scores"][-1:])
    write_records(tmp_path / "problems.jsonl", made)
    write_records(tmp_path / "samples.jsonl", tails)
    fields = {"samples": tmp_path / "samples.jsonl", "problems": tmp_path / "problems.jsonl"}
    stage.execute("score", config_of(world, **fields), tmp_path / "out")
    scores = {r["problem_id"]: r["step_scores"] for r in read_many(tmp_path / "out", "scored")}
    for problem, wanted in zip(made, expected, strict=True):
        assert scores[problem["id"]] == pytest.approx(wanted, abs=1e-5)


def test_a_box_in_the_prefix_is_no_answer_where_another_follows(world, tmp_path):
    """By itself the prefix ends with its box, and what stands behind it would be no step of it."""
    prefix, tail = "First \\boxed{3}.\n\nThen we go on.", "Add two.\n\nSo \\boxed{5}."
    problems = [{"id": "whole", "question": "a=1"}, {"id": "tail", "question": "a=1", "prefix": prefix}]
    texts = {"whole": f"{prefix}\n\n{tail}", "tail": tail}
    samples = [{"problem_id": name, "sample": 0, "text": text, "finish": "stop"} for name, text in texts.items()]
    write_records(tmp_path / "problems.jsonl", problems)
    write_records(tmp_path / "samples.jsonl", samples)
    fields = {"samples": tmp_path / "samples.jsonl", "problems": tmp_path / "problems.jsonl", "written_in": "qwen_boxed"}
    stage.execute("score", config_of(world, **fields), tmp_path / "out")
    scores = {r["problem_id"]: r["step_scores"] for r in read_many(tmp_path / "out", "scored")}
    assert len(scores["whole"]) == 5  # the model reads e2h: the answer stands in a section of its own besides
    assert scores["tail"] == pytest.approx(scores["whole"][2:], abs=1e-5)


def test_scores_are_probabilities_that_json_can_hold(uninterrupted):
    for line in lines(uninterrupted[0]):
        scores = json.loads(line, parse_constant=lambda name: pytest.fail(name))["step_scores"]
        assert all(0 <= s <= 1 for s in scores)
