"""Iterative DPO on PRM800K, 7b: pairs by the PRM's scores and final answers.

Expected (Tables 2 and 5, greedy on MATH500, easy / hard / all %):
  the generator                                                 28.2 / 12.2 / 19.8
  dpo_easy: easy questions, their answers, PRM                  42.0 / 12.2 / 26.4
  dpo_answered: all questions, all answers, PRM (*)             38.2 / 11.5 / 24.2
(*) uses final answers of hard problems: not easy-to-hard.

Slice: v5p:2x2x4

    e2h recipe --config=configs/paper/dpo_prm800k_7b.py --workdir=runs/prm800k
"""

from stages import Recipe


def get_config():
    recipe = Recipe("prm800k", "7b")
    policies = [recipe.dpo("easy"), recipe.dpo("answered")]
    recipe.evaluate("dpo_table_7b", recipe.learnt(*policies), against="sft_easy_7b")
    return recipe.finish()
