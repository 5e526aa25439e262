"""Table 1, MetaMath, 34b: generators, in context and fine-tuned; greedy, majority of 16 and of 256.

Expected (Table 1, MATH500 %, greedy / MAJ@16 / MAJ@256):
  in context      full 20.6 / 28.8 / 39.2    hard 21.8 / 26.4 / 38.6    easy-to-hard 19.8 / 26.8 / 37.2
  fine-tuned      full 35.4 / 44.2 / 45.6                               easy-to-hard 32.2 / 42.6 / 43.4

Slice: v5p:4x4x4

    e2h recipe --config=configs/paper/table1_metamath_34b.py --workdir=runs/metamath
"""

from stages import Recipe


def get_config():
    recipe = Recipe("metamath", "34b")
    generators = recipe.in_context("full", "hard", "easy") | recipe.fine_tuned("full", "easy")
    recipe.evaluate("table1_34b", generators)
    return recipe.finish()
