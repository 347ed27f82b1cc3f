import gzip
import json
from pathlib import Path

import pytest

from coterie.train.corpus import bytes_per_token, measure_corpora, shares, text_bytes


def test_plain_packed_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 1000)
    with gzip.open(tmp_path / "b.txt.gz", "wb") as file:
        file.write(b"y" * 50_000)
    assert text_bytes(tmp_path / "a.txt") == 1000
    assert text_bytes(tmp_path / "b.txt.gz") == 50_000
    assert text_bytes(tmp_path) == 51_000


def test_a_bigger_vocabulary_has_longer_tokens() -> None:
    assert bytes_per_token(8192) == pytest.approx(3.1)
    assert 1 <= bytes_per_token(2) < bytes_per_token(512) < bytes_per_token(32000) < 4


def test_the_real_text_is_guessed_within_a_fifth(data_dir: Path, tmp_path: Path) -> None:
    from coterie.checkpoint.hub import DEMO
    from coterie.tokenizer.load import load_tokenizer

    tokenizer, path = load_tokenizer(DEMO), tmp_path / "fr.valid.jsonl.gz"
    with gzip.open(data_dir / "text" / path.name, "rt", encoding="utf-8") as lines:
        some = [line for line, _ in zip(lines, range(20), strict=False)]
    with gzip.open(path, "wt", encoding="utf-8") as out:
        out.writelines(some)
    counted = sum(len(tokenizer.encode(json.loads(line)["text"])) for line in some)
    (guessed,) = measure_corpora([str(path)], None, tokenizer.vocab_size)
    assert not guessed.is_counted and guessed.name == "fr.valid"
    assert guessed.tokens == pytest.approx(counted, rel=0.2)


def test_an_earlier_run_has_counted(tmp_path: Path) -> None:
    folder = tmp_path / "tokens" / "a.txt-0123"
    folder.mkdir(parents=True)
    (tmp_path / "a.txt").write_bytes(b"x" * 1000)
    manifest = {"is_complete": False, "shards": [{"tokens": 40}, {"tokens": 2}]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert not measure_corpora([str(tmp_path / "a.txt")], tmp_path, 8192)[0].is_counted
    (folder / "manifest.json").write_text(json.dumps(manifest | {"is_complete": True}))
    (found,) = measure_corpora([str(tmp_path / "a.txt")], tmp_path, 8192)
    assert found.is_counted and found.tokens == 42
    (folder / "manifest.json").write_text("{")
    assert not measure_corpora([str(tmp_path / "a.txt")], tmp_path, 8192)[0].is_counted


def test_what_is_not_there_has_a_problem_and_no_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    one, two = measure_corpora(["$NOWHERE/a.txt", str(tmp_path / "none.txt")], None, 8192)
    assert one.tokens == two.tokens == 0
    assert "NOWHERE" in one.problem and "none.txt cannot be read" in two.problem


def test_shares_by_weight_and_by_size(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 3000)
    (tmp_path / "b.txt").write_bytes(b"x" * 1000)
    corpora = measure_corpora([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], None, 8192)
    assert shares(corpora, ()) == pytest.approx([0.75, 0.25], rel=1e-2)
    assert shares(corpora, (1.0, 1.0)) == [0.5, 0.5]
