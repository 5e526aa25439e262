"""Easy and hard levels: said in one place, and meant the same wherever problems are divided by them."""

import re
from pathlib import Path

import numpy as np
import pytest

from e2h_jax.data import arithmetic, prepare
from e2h_jax.data.levels import EASY_LEVELS, HARD_LEVELS, check_levels, group_of
from e2h_jax.data.records import read_records
from e2h_jax.errors import UserError
from e2h_jax.evaluation import comparison, evaluate

ROOT = Path(__file__).parents[2]


def test_a_level_is_easy_hard_or_neither():
    found = [group_of(level, (1, 2), (5,)) for level in (1, 2, 3, 4, 5, 6, None)]
    assert found == ["easy", "easy", None, None, "hard", None, None]
    with pytest.raises(UserError, match=r"^config.x.easy_levels and config.x.hard_levels share \[2\]; a level is"):
        check_levels((1, 2), (2, 3), "config.x")


def test_evaluate_and_validation_divide_problems_alike():
    validation = pytest.importorskip("e2h_jax.algorithms.validation")
    levels = [1, 2, 3, 3, 4, 5, 6, None]
    right = [True, False, True, True, False, True, True, False]
    for easy, hard in ((EASY_LEVELS, HARD_LEVELS), ((1,), (4, 5)), ((2, 6), (3,))):
        groups = comparison.Groups(levels, easy, hard, [None] * len(levels), 100, 0)
        (main,), (by_level,) = (comparison.statistics([np.array(right, float)], of) for of in (groups.main, groups.levels))
        expected = {name: found["accuracy"] for name, found in main.items()}
        expected |= {f"level_{level}": found["accuracy"] for level, found in by_level.items()}
        assert validation.accuracies(zip(levels, right, strict=True), easy, hard) == pytest.approx(expected, abs=1e-6)


def test_one_name_one_default_one_place():
    validation = pytest.importorskip("e2h_jax.algorithms.validation")
    from e2h_jax.algorithms import dpo, ppo, rest_em

    groups = [evaluate.defaults(), validation.defaults(), prepare.defaults().arithmetic]
    groups += [module.defaults().validation for module in (rest_em, dpo, ppo)]
    assert {(group.easy_levels, group.hard_levels) for group in groups} == {(EASY_LEVELS, HARD_LEVELS)}
    said_again = re.compile(r"""levels\w*["']?\s*[:=]\s*\(1, 2, 3\)|\(1, 2, 3\), \(4, 5\)|= \(4, 5\)""", re.IGNORECASE)
    sources = [path for folder in ("e2h_jax", "configs", "notebooks") for path in (ROOT / folder).rglob("*.[pi][yp]*")]
    found = [path.name for path in sources if path.suffix in (".py", ".ipynb") and said_again.search(path.read_text("utf-8"))]
    assert len(sources) > 100 and found == ["levels.py"]


def test_the_curriculum_takes_other_easy_levels(tmp_path):
    config = prepare.defaults().unlock()
    few = {"corpus": 50, "demonstrations": 10, "demonstrations_hard": 10, "evaluator_questions": 20, "test_easy": 10}
    few |= {"test_hard": 12, "rl_questions": 20, "validation_easy": 8, "validation_hard": 9}
    config.arithmetic.update(few | {"easy_levels": (1, 2), "hard_levels": (3, 4, 5)})
    arithmetic.prepare(config, tmp_path)

    def levels(name):
        return [problem["level"] for problem in read_records(str(tmp_path / f"{name}.jsonl"), "problem")]

    assert set(levels("demonstrations")) == set(levels("evaluator_questions")) == {1, 2}
    assert set(levels("demonstrations_all")) == set(levels("test")) == set(levels("validation")) == {1, 2, 3, 4, 5}
    assert sum(level >= 3 for level in levels("test")) == 12
    hidden = [(p["level"], p["answer"] is None) for p in read_records(str(tmp_path / "rl_questions.jsonl"), "problem")]
    assert all(gone == (level >= 3) for level, gone in hidden) and len(hidden) == 20
    for easy, hard, sentence in (((1, 2), (4, 5), "together they must be"), ((1, 2, 3), (3, 4, 5), "share [3]")):
        config.arithmetic.update({"easy_levels": easy, "hard_levels": hard})
        with pytest.raises(UserError) as caught:
            arithmetic.prepare(config, tmp_path / "refused")
        assert sentence in str(caught.value) and not (tmp_path / "refused").exists()
