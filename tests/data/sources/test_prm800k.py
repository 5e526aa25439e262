"""The walk over PRM800K's solutions, on the vectors of original-system.md A.6 and on real lines."""

import pytest

from e2h_jax.data.sources.prm800k import repair, walk
from e2h_jax.data.steps import encode_labelled, read_positions
from e2h_jax.data.templates import get_template

TEMPLATE = get_template("e2h")
QUESTION = "Easy train question, what is one plus one in plain numbers?"
HARD = "Hard train question, what is the ninth root of sixty-four?"
HELD = "One of the five hundred, what is two to the power of ten?"


def completion(text, rating):
    return {"text": text, "rating": rating, "flagged": False}


def step(*completions, chosen=None, human=None):
    human = human and {"text": human, "rating": None, "source": "human", "flagged": False}
    return {"completions": [completion(*c) for c in completions], "chosen_completion": chosen, "human_completion": human}


def line(*steps, problem=QUESTION):
    return {"question": {"problem": problem, "ground_truth_answer": "42"}, "label": {"steps": list(steps)}}


VECTOR = (
    step(("S1 good.", 1), ("S1 meh.", 0), ("S1 bad.", -1), ("S1 none.", None), chosen=0),
    step(("S2 bad", -1), human="S2 human"),
    step(("S3 by Mr.", 1), chosen=0),
    step(("S4 done.\n\n# Answer\n\n42", 1), ("S4 alt.\n# Answer\n\n43", 0), ("# Answer\n\n44", 1), chosen=0),
)
ANSWER = "# Answer\n\n"


def flat(records):
    """(prefix, text, label) of every labelled step."""
    found = []
    for record in records:
        before = [record["prefix"]] if record["prefix"] else []
        for text, label in zip(record["steps"], record["labels"], strict=True):
            if label is not None:
                found.append(("\n\n".join(before), text, label))
            before.append(text)
    return sorted(found)


def test_the_labels_of_the_original_s_vector(prepared):
    """As the original, but "S3 by Mr." is half a step: joined with what follows, never labelled alone."""
    records, card = prepared("prm800k", [line(*VECTOR)])
    human = "S1 good.\n\nS2 human"
    assert flat(records) == sorted(
        [
            ("", "S1 good.", 1.0),
            ("", "S1 meh.", 1.0),
            ("", "S1 bad.", 0.0),
            ("S1 good.", "S2 bad", 0.0),
            (human, "S3 by Mr. S4 done.", 1.0),
            (f"{human}\n\nS3 by Mr. S4 done.", ANSWER + "42", 1.0),
            (human, "S3 by Mr. S4 alt.", 1.0),
            (f"{human}\n\nS3 by Mr. S4 alt.", ANSWER + "43", 1.0),
            (human, "S3 by Mr.", 1.0),
            (f"{human}\n\nS3 by Mr.", ANSWER + "44", 1.0),
        ]
    )
    chain = [record for record in records if len(record["steps"]) > 2]
    assert [record["labels"] for record in chain] == [[1.0, None, 1.0, 1.0]]
    assert {record["level"] for record in records} == {1} and {r["problem_id"] for r in records} == {"math/train/0"}
    assert card["splits"]["train"]["labels wrong"] == 2


def test_neutral_steps_may_be_left_out(prepared):
    records, _ = prepared("prm800k", [line(*VECTOR)], neutral="drop")
    assert not {"S1 meh.", "S3 by Mr. S4 alt."} & {text for _, text, _ in flat(records)}


def test_demonstrations_of_the_original_s_vector(prepared):
    records, _ = prepared("prm800k", [line(*VECTOR)], records="sft")
    human = "S1 good.\n\nS2 human"
    found = [(record["prefix"], record["solution"], record["eos"]) for record in records]
    assert sorted(found) == sorted(
        [
            ("", "S1 good.", False),
            (human, f"S3 by Mr. S4 done.\n\n{ANSWER}42", True),
            (human, f"S3 by Mr.\n\n{ANSWER}44", True),
        ]
    )
    assert len({record["id"] for record in records}) == 3


def test_neighbouring_good_steps_are_one_demonstration(prepared):
    steps = [step(("A.", 1), ("A?", 1), chosen=0), step(("B.", 1)), step(("C.", 0)), step(("D.", 1))]
    records, _ = prepared("prm800k", [line(*steps)], records="sft")
    assert {(r["prefix"], r["solution"]) for r in records} == {("", "A.\n\nB."), ("", "A?"), ("A.\n\nB.\n\nC.", "D.")}


def test_duplicates_are_of_one_question_and_the_first_rating_wins(prepared):
    other = "Moved from the test, what is three times three exactly?"
    first, again = line(step(("Same.", 1), chosen=0)), line(step(("Same.", -1)), step(("Then.", 1)))
    records, card = prepared("prm800k", [first, again, line(step(("Same.", -1)), problem=other)])
    assert [(r["question"], r["steps"], r["labels"]) for r in records] == [
        (QUESTION, ["Same."], [1.0]),
        (other, ["Same."], [0.0]),
    ]
    assert card["counts"]["completions rated before"] == 1


@pytest.mark.parametrize(
    ("steps", "texts"),
    [
        ([step(("A", -1)), step(("B", 1))], ["A"]),  # nothing follows a wrong step
        ([step(("A", 0)), step(("B", 1))], ["A", "B"]),  # the only completion goes on
        ([step(("A", 1), ("B", 1)), step(("C", 1))], ["A", "B"]),  # nobody chose
        ([{"completions": None}, step(("C", 1))], []),
        ([step((" ", 1), ("B", 1), chosen=1)], ["B"]),
        ([step(("A", 1), chosen=0), {"completions": None, "human_completion": None}], ["A"]),
    ],
)
def test_where_the_walk_goes_and_ends(steps, texts):
    assert [text for candidate in walk(steps, TEMPLATE) for text in candidate.steps] == texts


def test_repair():
    assert (
        repair("So.\n# Answer\n\n4") == repair("So.# Answer\n\n4") == repair("So.\n\n\n# Answer\n\n4") == "So.\n\n# Answer\n\n4"
    )
    assert repair("# Answer\n4") == "# Answer\n4"


def test_which_problems_are_kept(prepared):
    rows = [
        line(step((name, 1)), problem=problem) for name, problem in (("e", QUESTION), ("h", HARD), ("t", HELD), ("u", "new?"))
    ]

    def texts(**fields):
        return {record["steps"][0] for record in prepared("prm800k", rows, **fields)[0]}

    assert texts() == {"e", "h", "u"}
    assert texts(levels=(1, 2, 3)) == {"e", "u"}
    assert texts(levels=(1, 2, 3), keep_unknown=False) == {"e"}


def test_test_files_give_a_test_split_of_math500(prepared, tmp_path, rows_file):
    rows_file(tmp_path / "prm" / "phase1_train.jsonl", [line(step(("a", 1)))])
    rows_file(tmp_path / "prm" / "phase1_test.jsonl", [line(step(("b", 1)), problem=HELD), line(step(("c", 1)))])
    records, _ = prepared("prm800k", str(tmp_path / "prm"), levels=(1,))
    assert [(record["split"], record["steps"]) for record in records] == [("train", ["a"]), ("test", ["b"])]


def test_another_file_is_refused(refused):
    refused('train.jsonl:1: field "question.problem" is missing', "prm800k", [{"question": "?"}])
    refused("train.jsonl:1: label.steps is not as in PRM800K", "prm800k", [{"question": {"problem": "?"}, "label": {}}])
    bad = line() | {"question": {"problem": QUESTION, "ground_truth_answer": 42}}
    refused('train.jsonl:1: field "question.ground_truth_answer" must be text or null, not 42', "prm800k", [bad])
    refused('config.neutral="negative" must be positive or drop', "prm800k", [line(*VECTOR)], neutral="negative")
    refused('written in the format "e2h"', "prm800k", [line()], template="qwen_boxed")


@pytest.mark.parametrize("rating", [True, "1", 0.5, float("nan"), 2, -2, [1]])
def test_a_rating_of_another_type_is_refused(refused, rating):
    refused("train.jsonl:1: a rating must be 1, 0, -1 or null, not ", "prm800k", [line(step(("a", rating)))])


@pytest.mark.parametrize("chosen", [True, "0", 1.0, 2, -1])
def test_a_choice_that_is_no_completion_is_refused(refused, chosen):
    row = line(step(("a", 1), ("b", -1), chosen=chosen))
    refused("train.jsonl:1: label.steps is not as in PRM800K .*chosen_completion", "prm800k", [row])


def test_ratings_that_went_through_floats_are_those_of_integers(prepared):
    rows = [line(step(("a", 1), ("b", -1), ("c", 0), chosen=0), step(("d", -1)))]
    floats = [line(step(("a", 1.0), ("b", -1.0), ("c", 0.0), chosen=0), step(("d", -1.0)))]
    found, card = prepared("prm800k", floats)
    expected, expected_card = prepared("prm800k", rows)
    assert found == expected and card["counts"] == expected_card["counts"] and len(found) == 3


def test_real_lines(shared_data, prepared, llama2):
    """Every rated completion of the eight genuine lines is labelled once, and read at one place per step."""
    records, card = prepared("prm800k", str(shared_data / "prm800k" / "samples.jsonl"), levels=(1, 2, 3))
    rated = sum(count for name, count in card["counts"].items() if name in ("completions rated +1", "completions rated -1"))
    labelled = sum(label is not None for record in records for label in record["labels"])
    assert card["counts"]["solutions kept"] == 8  # none of their problems is in the small MATH of this test
    assert labelled >= rated > 100
    for record, (encoded, first) in zip(records, encode_labelled(llama2, records, TEMPLATE, add_eos=True), strict=True):
        assert all(len(read) == 1 for read in read_positions(encoded, "separator_last")[first:])
        assert len(encoded.steps) == first + len(record["steps"])
