"""PPO on MetaMath and Math-Shepherd, 7b: process rewards of the PRM on all questions, against final answers alone.

Expected (Tables 2 and 5, greedy on MATH500, easy / hard / all %):
  the generator                                                 44.1 / 14.9 / 28.8
  ppo_all: all questions, answers of easy ones, PRM             53.8 / 16.0 / 34.0
  ppo_outcome_easy: easy questions, their answers               50.8 / 15.3 / 32.2
  ppo_outcome_answered: all questions, all answers (*)          50.8 / 13.4 / 31.2
(*) uses final answers of hard problems: not easy-to-hard.

Slice: v5p:2x2x4

    e2h recipe --config=configs/paper/ppo_metamath_7b.py --workdir=runs/metamath
"""

from stages import Recipe


def get_config():
    recipe = Recipe("metamath", "7b")
    policies = [
        recipe.ppo("all", prm=True),
        *(recipe.ppo(questions, prm=False) for questions in ("easy", "answered")),
    ]
    recipe.evaluate("ppo_table_7b", recipe.learnt(*policies), against="sft_easy_7b")
    return recipe.finish()
