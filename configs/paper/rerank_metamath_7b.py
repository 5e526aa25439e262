"""Figures 4, 5 and 10, MetaMath and Math-Shepherd, 7b: 1,024 solutions of each MATH500 problem, re-ranked.

Generator and evaluators have seen easy problems (levels 1 to 3, and GSM8K) alone. The paper has no 34b evaluators of this data.

Expected (figures 4 and 10; majority / weighted voting by product / best-of-N by minimum, %):
  with        all @256              all @1024             easy @1024            hard @1024
  OPRM        41.9 / 43.8 / 37.2    42.2 / 43.9 / 37.2    64.2 / 67.8 / 56.6    22.3 / 22.3 / 19.5
  PRM         41.9 / 42.9 / 38.7    42.2 / 43.1 / 38.1    64.2 / 65.3 / 60.8    22.3 / 23.1 / 17.5
  ORM         41.9 / 42.4 / 37.7    42.2 / 42.6 / 37.5    64.2 / 65.7 / 57.5    22.3 / 21.8 / 19.4

Slice: v5e:4x8

    e2h recipe --config=configs/paper/rerank_metamath_7b.py --workdir=runs/metamath

Cheaper: --config.samples_sft_easy_7b.samples=256, in a workdir where they have not been drawn yet.
"""

from stages import Recipe


def get_config():
    recipe = Recipe("metamath", "7b")
    generators = recipe.reranked(prm=recipe.prm(), orm=recipe.orm(), oprm=recipe.oprm())
    curve = "metamath SFT-7b + "
    paper = {"prm": curve + "Math-Shepherd-PRM-7b", "orm": curve + "ORM-7b", "oprm": curve + "OPRM-7b"}
    recipe.evaluate("rerank_7b", generators, **paper)
    return recipe.finish()
