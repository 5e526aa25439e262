"""Tables 1 and 9, PRM800K, 7b: generators, in context and fine-tuned; greedy, majority of 16 and of 256.

Expected (Table 1, MATH500 %, greedy / MAJ@16 / MAJ@256):
  in context      full 12.8 / 15.6 / 20.8    hard 12.6 / 18.0 / 27.0    easy-to-hard 14.0 / 17.6 / 24.4
  fine-tuned      full 20.6 / 32.0 / 36.2                               easy-to-hard 19.8 / 31.6 / 36.0
Table 9 (greedy, all / hard): full 20.6 / 9.9, easy-to-hard 19.8 / 12.2, hard-to-easy 18.4 / 13.0.

Slice: v5e:4x8

    e2h recipe --config=configs/paper/table1_prm800k_7b.py --workdir=runs/prm800k
"""

from stages import Recipe


def get_config():
    recipe = Recipe("prm800k", "7b")
    generators = recipe.in_context("full", "hard", "easy") | recipe.fine_tuned("full", "easy")
    generators["sft_hard"] = {"greedy": recipe.greedy(recipe.sft("hard"))}
    recipe.evaluate("table1_7b", generators)
    return recipe.finish()
