"""A finished run small enough to work out by hand, whose texts try to break out of the page."""

import pytest
from ml_collections import ConfigDict

from e2h_jax import recipe, stage
from e2h_jax.config import plain
from e2h_jax.data.storage import write_json, write_records

HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"> {{script}} & <b>bold</b>'
PROBLEMS = [
    {"id": "p/0", "question": r"What is $\frac{10}{2}$?", "answer": "5", "level": 1, "subject": "Algebra"},
    {"id": "p/1", "question": f"Add 3 and 4. {HOSTILE}", "answer": "7", "level": 5, "subject": "Geometry"},
    {"id": "p/2", "question": "Costs $5 and $6: how many?", "answer": "11", "level": 5, "subject": "Algebra"},
]
# Answer (None: cut off before it), the scores of the first step and of the answer by the prm; the orm always says a half.
SAMPLES = {
    "p/0": [("5", 0.9, 0.9), ("5", 0.8, 0.9), ("6", 0.5, 0.5), (None, 0.1, 0.0)],
    "p/1": [("8", 0.2, 0.5), ("8", 0.5, 0.2), ("7", 0.9, 0.8), (f"<i>{HOSTILE}</i>", 0.1, 0.1)],
    "p/2": [("11", 0.9, 0.9), ("12", 0.9, 0.9), ("12", 0.1, 0.1), ("13", 0.0, 0.0)],
}


def write_run(folder, step=f"So: {HOSTILE}", problems=PROBLEMS):
    """A recipe's folder with what an evaluation reads, and a PPO run in it; `step` is the first one of every solution."""
    samples, by_prm, by_orm, labels = [], [], [], []
    for problem, rows in SAMPLES.items():
        for number, (answer, *scores) in enumerate(rows):
            text = step + ("" if answer is None else f"\n\n# Answer\n\n{answer}")
            finish = "length" if answer is None else "stop"
            sample = {"problem_id": problem, "sample": number, "text": text, "finish": finish, "logprob": -1.0 - number}
            samples.append(sample)
            by_prm.append(sample | {"step_scores": scores})
            by_orm.append(sample | {"step_scores": [0.5, 0.5]})
            of = {"problem_id": problem, "sample": number, "question": "?", "prefix": "", "level": None}
            labels.append(of | {"steps": ["So", "end"], "labels": [1.0, 0.0]})
    write_records(folder / "data" / "problems.jsonl", problems)
    write_records(folder / "data" / "samples.jsonl", samples)
    write_records(folder / "data" / "greedy.jsonl", [row | {"sample": 0} for row in samples if row["sample"] == 2])
    write_records(folder / "data" / "prm.jsonl", by_prm)
    write_records(folder / "data" / "orm.jsonl", by_orm)
    write_records(folder / "data" / "labels.jsonl", labels)
    lines = [{"step": 0, "validation/hard": 0.25, "time": 1.0}]
    lines += [{"step": n, "loss": 1 / n, "kl": "nan" if n == 2 else 0.1, "unknown": 3} for n in range(1, 6)]
    write_records(folder / "ppo" / "metrics.jsonl", lines)
    write_json(folder / "ppo" / "config.json", {"stage": "ppo", "config": {}})


def make_config():
    config = ConfigDict(recipe.defaults()).unlock()
    config.stages, config.report = ("evaluate",), True
    data = "{run}/data"
    config.evaluate = recipe.configure("evaluate", {"problems": f"{data}/problems.jsonl", "bootstrap": 100})
    config.evaluate.generators = ConfigDict(
        {
            "sft": {
                "samples": f"{data}/samples.jsonl",
                "greedy": f"{data}/greedy.jsonl",
                "scored": {"prm": f"{data}/prm.jsonl", "orm": f"{data}/orm.jsonl"},
            },
            "ppo": {"greedy": f"{data}/greedy.jsonl"},
        }
    )
    config.evaluate.labelled = f"{data}/labels.jsonl"
    config.evaluate.compare = (("ppo", "sft"),)
    config.evaluate.paper = ConfigDict({"prm": "prm800k SFT-7b + PRM-7b"})
    return config


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """The folder of a finished recipe with its report.html."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_run(folder)
    config = make_config()
    stage.check_config("recipe", config)
    stage.execute("recipe", config, folder)
    assert (folder / "report.html").exists()
    # As the command leaves it, with the PPO run among its stages.
    write_json(folder / "config.json", {"stage": "recipe", "config": plain(config) | {"stages": ["ppo", "evaluate"]}})
    return folder
