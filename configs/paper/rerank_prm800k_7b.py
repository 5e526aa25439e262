"""Figures 4, 5 and 8, PRM800K, 7b: 1,024 solutions of each MATH500 problem, re-ranked by evaluators of the same size.

Generator and evaluators have seen easy problems (levels 1 to 3) alone.

Expected (figures 4 and 8; majority / weighted voting by product / best-of-N by minimum, %):
  with        all @256              all @1024             easy @1024            hard @1024
  OPRM        36.8 / 41.3 / 36.2    37.1 / 42.7 / 36.7    56.8 / 63.2 / 55.1    19.2 / 24.1 / 19.9
  PRM         36.8 / 39.1 / 32.1    37.1 / 40.5 / 31.6    56.8 / 60.2 / 49.1    19.2 / 22.8 / 15.7
  ORM         36.8 / 39.4 / 32.9    37.1 / 40.0 / 32.8    56.8 / 60.8 / 50.9    19.2 / 21.2 / 16.3

Slice: v5e:4x8

    e2h recipe --config=configs/paper/rerank_prm800k_7b.py --workdir=runs/prm800k

Cheaper: --config.samples_sft_easy_7b.samples=256, in a workdir where they have not been drawn yet.
"""

from stages import Recipe


def get_config():
    recipe = Recipe("prm800k", "7b")
    generators = recipe.reranked(prm=recipe.prm(), orm=recipe.orm(), oprm=recipe.oprm())
    curve = "prm800k SFT-7b + "
    paper = {"prm": curve + "PRM-7b", "orm": curve + "ORM-7b", "oprm": curve + "OPRM-7b"}
    recipe.evaluate("rerank_7b", generators, **paper)
    return recipe.finish()
