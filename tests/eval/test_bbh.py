from coterie.eval.bbh import Bbh
from coterie.eval.rows import Files
from coterie.eval.task import Context, Generate


def test_shots_are_of_the_same_subtask_under_its_sentence() -> None:
    rows = [
        {"task": task, "question": f"{task} {n}", "answer": "x"} for task in ("word_sorting", "new") for n in (1, 2)
    ]
    prompts = [item.asks[0].prompt for item in Bbh().items(rows, shots=1, seed=0) if isinstance(item.asks[0], Generate)]
    assert prompts[0] == "Sort a list of words.\n\nQ: word_sorting 2\nA: x\n\nQ: word_sorting 1\nA:"
    assert prompts[3] == "Q: new 1\nA: x\n\nQ: new 2\nA:"


def test_noise_around_an_answer_does_not_count() -> None:
    row = {"task": "word_sorting", "question": "q", "answer": "ant bee"}
    for text in (" ant bee.", "Ant, bee\n", '"ant bee"'):
        assert Bbh().score(text, row)["exact_match"] == 1
    assert Bbh().score("bee ant", row)["exact_match"] == 0


def test_samples_vote_over_what_can_be_found_in_them() -> None:
    task = Bbh(Context(Files(None), samples=4))
    row = {"task": "boolean_expressions", "question": "not True is", "answer": "False"}
    (item,) = task.items([row], shots=0, seed=0)
    texts = ["False", " so it is False.", "True", "no idea"]
    assert task.judge(item, [texts]) == {"exact_match": 0.25, "flexible_extract": 0.5, "maj@4": 1.0}
