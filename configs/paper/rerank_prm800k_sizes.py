"""Figures 8 and 9, PRM800K, across sizes: the 7b's solutions re-ranked by the 34b OPRM, and the other way round.

Expected (MATH500; majority / weighted voting by product / best-of-N by minimum, %):
  with        all @256              all @1024             easy @1024            hard @1024
  7b by 34b   36.8 / 44.0 / 42.6    37.1 / 46.3 / 44.3    56.8 / 66.5 / 64.4    19.2 / 27.8 / 26.0
  34b by 7b   46.5 / 49.1 / 42.7    46.5 / 50.7 / 43.0    68.5 / 72.7 / 63.5    26.4 / 30.7 / 24.4

Slice: v5p:4x4x4

    e2h recipe --config=configs/paper/rerank_prm800k_sizes.py --workdir=runs/prm800k

In the workdir of rerank_prm800k_7b and rerank_prm800k_34b only the scores are new.
"""

from stages import Recipe


def get_config():
    small = Recipe("prm800k", "7b")
    large = Recipe("prm800k", "34b", beside=small)
    evaluators = {"oprm_7b": small.oprm(), "oprm_34b": large.oprm()}
    large.evaluate("rerank_sizes", small.reranked(**evaluators) | large.reranked(**evaluators))
    return large.finish()
