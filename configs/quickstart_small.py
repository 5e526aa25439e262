"""The quickstart without its training, in under a minute: a trained generator samples, a trained PRM judges, voting decides.

    e2h recipe --config=configs/quickstart_small.py --workdir=runs/quickstart_small

The two models are those of a quickstart with seed 43, which notebooks/data ships; the problems are of that seed's held-out
side. configs/quickstart.py trains all models, in ten minutes.
"""

from pathlib import Path

from ml_collections import ConfigDict

from e2h_jax import recipe
from e2h_jax.recipe import configure

_MODELS = Path(__file__).resolve().parents[1] / "notebooks" / "data"
_SEED = 43  # tells held-out problems from those that the models were trained on


def get_config() -> ConfigDict:
    config = ConfigDict(recipe.defaults()).unlock()
    config.stages = ("data", "sft", "prm", "greedy", "samples", "score_prm", "evaluate")
    config.publish = tuple((f"evaluate/{name}", name) for name in ("results.json", "table.md", "curves.png"))

    training = ("corpus", "demonstrations", "demonstrations_hard", "evaluator_questions", "rl_questions")
    unused = dict.fromkeys((*training, "validation_easy", "validation_hard"), 0)
    test = {"test_easy": 60, "test_hard": 120}
    config.data = configure("prepare", {"source": "arithmetic", "arithmetic": {"seed": _SEED} | test | unused})

    for name, folder in (("sft", "generator"), ("prm", "prm")):
        config[name] = configure("convert", {"source": str(_MODELS / folder)})

    problems = "{run}/data/test.jsonl"
    drawing = {"model": "{run}/sft/model", "problems": problems, "top_k": 0, "rows": 256}
    drawing |= {"prompt_bucket": 64, "max_new_tokens": 56}
    config.greedy = configure("sample", drawing | {"samples": 1, "temperature": 0.0})
    config.samples = configure("sample", drawing | {"samples": 16, "temperature": 0.8, "seed": config.get_ref("seed")})
    config.score_prm = configure("score", {"model": "{run}/prm/model", "samples": "{run}/samples", "problems": problems})

    generators = {"sft": {"samples": "{run}/samples", "greedy": "{run}/greedy", "scored": {"prm": "{run}/score_prm"}}}
    config.evaluate = configure("evaluate", {"problems": problems, "generators": generators, "seconds_from": "{run}"})
    return config.lock()
