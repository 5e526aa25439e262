"""Table 1, PRM800K, 34b: generators, in context and fine-tuned; greedy, majority of 16 and of 256.

Expected (Table 1, MATH500 %, greedy / MAJ@16 / MAJ@256):
  in context      full 18.6 / 23.6 / 36.0    hard 15.8 / 21.4 / 34.2    easy-to-hard 18.2 / 25.2 / 36.8
  fine-tuned      full 25.6 / 41.8 / 46.4                               easy-to-hard 24.8 / 40.8 / 46.0

Slice: v5p:4x4x4

    e2h recipe --config=configs/paper/table1_prm800k_34b.py --workdir=runs/prm800k
"""

from stages import Recipe


def get_config():
    recipe = Recipe("prm800k", "34b")
    generators = recipe.in_context("full", "hard", "easy") | recipe.fine_tuned("full", "easy")
    recipe.evaluate("table1_34b", generators)
    return recipe.finish()
