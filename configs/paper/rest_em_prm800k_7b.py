"""ReST-EM on PRM800K, 7b: two rounds of training on right solutions, by final answers alone.

Expected (Tables 2 and 5, greedy on MATH500, easy / hard / all %):
  the generator                                                 28.2 / 12.2 / 19.8
  rest_em_easy: easy questions                                  33.2 / 12.6 / 22.4
  rest_em_hard: hard questions, by their answers (*)            31.9 /  8.0 / 19.4
  rest_em_answered: all questions, by their answers (*)         35.7 /  8.8 / 21.6
(*) uses final answers of hard problems: not easy-to-hard.

Slice: v5p:2x2x4

    e2h recipe --config=configs/paper/rest_em_prm800k_7b.py --workdir=runs/prm800k
"""

from stages import Recipe


def get_config():
    recipe = Recipe("prm800k", "7b")
    policies = [recipe.rest_em("easy"), recipe.rest_em("hard"), recipe.rest_em("answered")]
    recipe.evaluate("rest_em_table_7b", recipe.learnt(*policies), against="sft_easy_7b")
    return recipe.finish()
