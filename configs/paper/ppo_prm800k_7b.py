"""PPO on PRM800K, 7b: process rewards of the PRM on all questions, against final answers alone.

Expected (Tables 2 and 5, greedy on MATH500, easy / hard / all %):
  the generator                                                 28.2 / 12.2 / 19.8
  ppo_all: all questions, answers of easy ones, PRM             45.4 / 14.9 / 29.4
  ppo_outcome_easy: easy questions, their answers               42.0 / 14.1 / 27.4
  ppo_outcome_hard: hard questions, their answers (*)           34.0 /  9.2 / 21.0
  ppo_outcome_answered: all questions, all answers (*)          42.0 / 10.7 / 25.6
(*) uses final answers of hard problems: not easy-to-hard.

Slice: v5p:2x2x4

    e2h recipe --config=configs/paper/ppo_prm800k_7b.py --workdir=runs/prm800k
"""

from stages import Recipe


def get_config():
    recipe = Recipe("prm800k", "7b")
    policies = [
        recipe.ppo("all", prm=True),
        *(recipe.ppo(questions, prm=False) for questions in ("easy", "hard", "answered")),
    ]
    recipe.evaluate("ppo_table_7b", recipe.learnt(*policies), against="sft_easy_7b")
    return recipe.finish()
