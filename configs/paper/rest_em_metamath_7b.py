"""ReST-EM on MetaMath, 7b: two rounds of training on right solutions of easy questions.

Expected (Tables 2 and 5, greedy on MATH500, easy / hard / all %):
  the generator                                                 44.1 / 14.9 / 28.8
  rest_em_easy: easy questions, by their answers                50.4 / 14.5 / 31.6

Slice: v5p:2x2x4

    e2h recipe --config=configs/paper/rest_em_metamath_7b.py --workdir=runs/metamath
"""

from stages import Recipe


def get_config():
    recipe = Recipe("metamath", "7b")
    policies = [recipe.rest_em("easy")]
    recipe.evaluate("rest_em_table_7b", recipe.learnt(*policies), against="sft_easy_7b")
    return recipe.finish()
