from pathlib import Path

from coterie.eval.kept import Kept


def test_what_was_found_is_there_again_under_all_that_decides_it(tmp_path: Path) -> None:
    with Kept(tmp_path / "run", "perplexity", "model a") as kept:
        assert kept.find((1, 2), 8) is None
        kept.add([1.5, 2], (1, 2), 8)
        assert kept.find((1, 2), 8) == [1.5, 2]
    with (tmp_path / "run" / "perplexity.jsonl").open("a") as file:
        file.write('{"key": "cut off wh')
    with Kept(tmp_path / "run", "perplexity", "model a") as kept:
        assert kept.find((1, 2), 8) == [1.5, 2] and kept.find((1, 2), 9) is None
    with Kept(tmp_path / "run", "perplexity", "model b") as kept:
        assert kept.find((1, 2), 8) is None


def test_without_a_folder_nothing_is_kept() -> None:
    with Kept(None, "perplexity", "a") as kept:
        kept.add(1, "x")
    with Kept(None, "perplexity", "a") as kept:
        assert kept.find("x") is None
