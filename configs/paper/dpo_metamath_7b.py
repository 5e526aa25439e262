"""Iterative DPO on MetaMath and Math-Shepherd, 7b: pairs by the PRM's scores and final answers.

Expected (Tables 2 and 5, greedy on MATH500, easy / hard / all %):
  the generator                                                 44.1 / 14.9 / 28.8
  dpo_easy: easy questions, their answers, PRM                  53.8 / 16.0 / 34.0
  dpo_all: all questions, answers of easy ones, PRM             49.6 / 10.7 / 29.2
  dpo_answered: all questions, all answers, PRM (*)             47.9 / 12.2 / 29.2
(*) uses final answers of hard problems: not easy-to-hard.

Slice: v5p:2x2x4

    e2h recipe --config=configs/paper/dpo_metamath_7b.py --workdir=runs/metamath
"""

from stages import Recipe


def get_config():
    recipe = Recipe("metamath", "7b")
    policies = [recipe.dpo("easy"), recipe.dpo("all"), recipe.dpo("answered")]
    recipe.evaluate("dpo_table_7b", recipe.learnt(*policies), against="sft_easy_7b")
    return recipe.finish()
