"""The converter of the public re-ranking pool; on the pool itself, the numbers that its documentation gives."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from e2h_jax import recipe
from e2h_jax.config import load_file
from e2h_jax.data.records import read_many
from e2h_jax.data.sources.rerank_pool import convert
from e2h_jax.errors import UserError

DATA = Path(os.environ.get("E2H_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
POOL = DATA / "rerank" / "math500_bon32.jsonl.gz"

ENTRY = {
    "math500_index": 3,
    "problem": "What is $2+3$?",
    "answer": "5",
    "level": 1,
    "subject": "Algebra",
    "candidates": [
        {"text": "It is \\boxed{5}.", "boxed": "5", "qwen_prm": [0.99, 1.0]},
        {"text": "It is", "boxed": None, "qwen_prm": [0.5, 0.25]},
    ],
}


def write_gz(path, *entries):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)
    return path


def test_convert(tmp_path):
    counts = convert(write_gz(tmp_path / "pool.jsonl.gz", ENTRY), tmp_path / "out")
    assert counts == {"problems": 1, "samples": 2}
    (problem,) = read_many(tmp_path / "out" / "problems.jsonl", "problem")
    assert (problem["id"], problem["answer"], problem["level"]) == ("math500/3", "5", 1)
    samples = read_many(tmp_path / "out" / "samples", "sample")
    assert [sample["finish"] for sample in samples] == ["stop", "length"]
    assert "step_scores" not in samples[0]
    scored = read_many(tmp_path / "out" / "scored", "scored")
    assert [record["step_scores"] for record in scored] == [[0.99, 1.0], [0.5, 0.25]]
    assert [record["text"] for record in scored] == [sample["text"] for sample in samples]


def test_bad_pools_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no such file; give the file math500_bon32"):
        convert(tmp_path / "none.jsonl.gz", tmp_path)
    path = write_gz(tmp_path / "a.jsonl.gz", ENTRY, {"problem": "?"})
    with pytest.raises(UserError, match=r"a\.jsonl\.gz:2: field 'math500_index' is missing"):
        convert(path, tmp_path)
    path = write_gz(tmp_path / "b.jsonl.gz", [ENTRY])
    with pytest.raises(UserError, match=r"b\.jsonl\.gz:1: not an entry of the pool"):
        convert(path, tmp_path)
    path = write_gz(tmp_path / "c.jsonl.gz", ENTRY | {"level": 9})
    with pytest.raises(UserError, match='field "level" must be an integer from 1 to 5'):
        convert(path, tmp_path)
    assert not (tmp_path / "problems.jsonl").exists()


def test_the_recipe_fits_its_stages():
    root = Path(__file__).resolve().parents[2]
    recipe.check(load_file(str(root / "configs" / "rerank_pool.py")))


@pytest.mark.skipif(not POOL.is_file(), reason=f"the real pool is not at {POOL} (set E2H_DATA)")
def test_the_real_pool_agrees_with_its_documentation(tmp_path):
    """By the pool's own string flags its documented accuracies come out; by our grader, 335 more answers are right."""
    from e2h_jax.evaluation import estimators, inputs, voting

    convert(POOL, tmp_path)
    problems = inputs.read_problems(str(tmp_path / "problems.jsonl"))
    paths = {"samples": str(tmp_path / "samples"), "scored": {"prm": str(tmp_path / "scored")}, "answer": "boxed"}
    pool = inputs.read_generator("llm", paths, problems, 0, "strict")
    with gzip.open(POOL, "rt") as file:
        naive = np.array([[c["str_match"] for c in json.loads(line)["candidates"]] for line in file])
    easy = np.array([problem["level"] <= 3 for problem in problems])
    steps = [scores for row in pool.step_scores["prm"] for scores in row]
    prod, least = (voting.aggregate(steps, name).reshape(500, 32) for name in ("prod", "min"))

    def measured(correct):
        votes = estimators.vote_at_k(pool.answers, correct, np.stack([prod**0, prod]), 32, np.random.default_rng(0))
        found = [
            estimators.pass_at_k(correct, 1),
            *votes,
            estimators.best_of_k(least, correct, 32),
            correct.any(axis=1),
        ]
        return 100 * np.array([[values[easy].mean(), values[~easy].mean(), values.mean()] for values in found])

    documented = [[77.2, 54.8, 65.4], [89.1, 65.3, 76.6], [89.5, 69.9, 79.2], [81.1, 69.5, 75.0], [93.7, 85.1, 89.2]]
    assert np.abs(measured(naive) - documented).max() < 0.5
    assert (pool.correct & ~naive).sum() == 335
    assert (naive & ~pool.correct).sum() == 0
    ours = [[79.5, 56.7, 67.5], [91.6, 67.7, 79.1], [92.0, 72.1, 81.6], [83.9, 71.5, 77.4], [96.2, 87.4, 91.6]]
    np.testing.assert_allclose(measured(pool.correct), ours, atol=0.06)
    assert pool.counts == {"graded": 16000, "undecided": 0, "no_answer": 1180, "unfinished": 1178}

    pool = inputs.read_generator("llm", paths, problems, 0)  # the default rules
    ours = [[81.6, 58.6, 69.6], [94.1, 69.9, 81.5], [94.5, 74.4, 84.0], [86.3, 73.7, 79.7], [97.9, 88.9, 93.2]]
    np.testing.assert_allclose(measured(pool.correct), ours, atol=0.06)
    assert pool.counts["undecided"] == 2
    # By any rule 13 of the 1,180 solutions without a box have an answer: a sentence.
    anyhow = inputs.read_generator("llm", paths | {"answer": "any"}, problems, 0)
    assert anyhow.counts["found_by"] == {"boxed": 14820, "section": 0, "sentence": 13}
    assert anyhow.counts["no_answer"] == 1167 and not (pool.correct & ~anyhow.correct).any()
