"""Solutions without an answer by level and subject; tables of problems without levels, and of groups without problems."""

import json

import pytest
from test_evaluate import PROBLEMS, make_config, write_pool

from e2h_jax.data.storage import write_records
from e2h_jax.evaluation import evaluate


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    write_pool(folder)
    return folder


def test_solutions_without_an_answer_by_level_and_subject(pool, tmp_path, capsys):
    evaluate.run(make_config(pool), tmp_path)
    printed, table = capsys.readouterr().out, (tmp_path / "table.md").read_text()
    base, sft = json.loads((tmp_path / "results.json").read_text())["no_answer"]
    assert sft["levels"] == {"1": {"graded": 5, "no_answer": 1}, "5": {"graded": 5, "no_answer": 0}}  # four samples, and greedy
    assert sft["subjects"] == {"Algebra": sft["levels"]["1"], "Geometry": sft["levels"]["5"]}
    none = {"graded": 1, "no_answer": 0}
    assert base == {"generator": "base", "levels": {"1": none, "5": none}, "subjects": {"Algebra": none, "Geometry": none}}
    assert "sft, without an answer by level: 1: 20.0 %, 5: 0.0 %." in printed and "base, without" not in printed
    for groups in ("level 1 | level 5", "Algebra | Geometry"):
        assert f"| generator | {groups} |\n| --- | --- | --- |\n| sft | 1 of 5 (20.0 %) | 0 of 5 (0.0 %) |\n" in table


def test_problems_without_levels_have_no_columns_for_them(pool, tmp_path, capsys):
    write_records(tmp_path / "problems.jsonl", [problem | {"level": None, "subject": None} for problem in PROBLEMS])
    config = make_config(pool)
    config.problems, config.compare = str(tmp_path / "problems.jsonl"), (("base", "sft"),)
    summary = evaluate.run(config, tmp_path / "out")
    table, printed = (tmp_path / "out" / "table.md").read_text(), capsys.readouterr().out
    assert "| generator | N | decoding | all (2) | all, minus majority |" in table
    assert "| sft | 4 | weighted voting, prm (prod) | 100.0 [100.0, 100.0] | +50.0 [+0.0, +100.0] |" in table
    assert (
        "| generator | minus | all |" in table
        and "| generator | evaluator | judged | all AUC (within) | all accuracy |" in table
    )
    assert "easy" not in table and "hard" not in table and "By level" not in table and "Without an answer" not in table
    assert "all, minus" in printed and "base minus sft, all: +0.0" in printed
    assert "easy" not in printed and "hard" not in printed and "by level" not in printed
    assert summary["all/sft/weighted_prm@4"] == 100
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["no_answer"][1] == {"generator": "sft", "levels": {}, "subjects": {}}


def test_a_group_without_problems_has_no_column(pool, tmp_path):
    config = make_config(pool)
    config.easy_levels, config.hard_levels = (2,), (1, 5)
    evaluate.run(config, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "| generator | N | decoding | hard (2) | all (2) | hard, minus majority |" in table
