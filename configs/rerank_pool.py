"""Re-rank 16,000 real solutions of MATH500 by the step scores of a real PRM. Seconds, on any machine.

    e2h recipe --config=configs/rerank_pool.py --workdir=runs/rerank_pool

Reads rerank/math500_bon32.jsonl.gz from the folder E2H_DATA (default: shared/data beside the project's folder), or
the file given by --config.prepare.path=…. `docs/rerank_pool.md` tells what to expect.
"""

import os
from pathlib import Path

from ml_collections import ConfigDict

from e2h_jax import recipe
from e2h_jax.recipe import configure

_DATA = Path(os.environ.get("E2H_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))


def get_config() -> ConfigDict:
    config = ConfigDict(recipe.defaults()).unlock()
    config.stages = ("prepare", "evaluate")
    config.publish = tuple((f"evaluate/{name}", name) for name in ("results.json", "table.md", "curves.png"))
    config.report = True

    config.prepare = configure(
        "prepare", {"source": "rerank_pool", "path": str(_DATA / "rerank" / "math500_bon32.jsonl.gz")}
    )
    config.evaluate = configure(
        "evaluate",
        {
            "problems": "{run}/prepare/problems.jsonl",
            "generators": {
                "llm": {
                    "samples": "{run}/prepare/samples",
                    "scored": {"qwen_prm": "{run}/prepare/scored"},
                    "answer": "boxed",  # as its solutions were asked to write it
                },
            },
            "seconds_from": "{run}",
        },
    )
    return config.lock()
