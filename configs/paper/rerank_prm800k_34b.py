"""Figures 4, 5 and 9, PRM800K, 34b: 1,024 solutions of each MATH500 problem, re-ranked by evaluators of the same size.

Generator and evaluators have seen easy problems (levels 1 to 3) alone.

Expected (figures 4 and 9; majority / weighted voting by product / best-of-N by minimum, %):
  with        all @256              all @1024             easy @1024            hard @1024
  OPRM        46.5 / 51.0 / 46.3    46.5 / 52.5 / 46.3    68.5 / 74.4 / 67.4    26.4 / 32.6 / 27.0
  PRM         46.5 / 48.2 / 42.6    46.5 / 48.9 / 43.1    68.5 / 70.5 / 64.6    26.4 / 29.4 / 23.7
  ORM         46.5 / 49.3 / 42.5    46.5 / 49.9 / 43.3    68.5 / 71.5 / 65.0    26.4 / 30.2 / 23.7

Slice: v5p:4x4x4

    e2h recipe --config=configs/paper/rerank_prm800k_34b.py --workdir=runs/prm800k

Cheaper: --config.samples_sft_easy_34b.samples=256, in a workdir where they have not been drawn yet.
"""

from stages import Recipe


def get_config():
    recipe = Recipe("prm800k", "34b")
    generators = recipe.reranked(prm=recipe.prm(), orm=recipe.orm(), oprm=recipe.oprm())
    curve = "prm800k SFT-34b + "
    paper = {"prm": curve + "PRM-34b", "orm": curve + "ORM-34b", "oprm": curve + "OPRM-34b"}
    recipe.evaluate("rerank_34b", generators, **paper)
    return recipe.finish()
