"""Tables 1 and 9, MetaMath, 7b: generators, in context and fine-tuned; greedy, majority of 16 and of 256.

Expected (Table 1, MATH500 %, greedy / MAJ@16 / MAJ@256):
  in context      full 16.4 / 18.4 / 25.6    hard 16.6 / 19.0 / 27.0    easy-to-hard 14.2 / 17.4 / 26.8
  fine-tuned      full 31.4 / 40.2 / 41.6                               easy-to-hard 30.0 / 38.6 / 42.4
Table 9 (greedy, all / hard): full 31.4 / 13.7, easy-to-hard 30.0 / 14.9, hard-to-easy 30.4 / 15.3.

Slice: v5e:4x8

    e2h recipe --config=configs/paper/table1_metamath_7b.py --workdir=runs/metamath
"""

from stages import Recipe


def get_config():
    recipe = Recipe("metamath", "7b")
    generators = recipe.in_context("full", "hard", "easy") | recipe.fine_tuned("full", "easy")
    generators["sft_hard"] = {"greedy": recipe.greedy(recipe.sft("hard"))}
    recipe.evaluate("table1_7b", generators)
    return recipe.finish()
