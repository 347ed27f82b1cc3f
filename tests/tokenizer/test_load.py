"""Which tokenizer a folder gets, by the content of its files; files that are cut off, too large or something else."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from coterie.errors import TokenizerError
from coterie.tokenizer import Tokenizer, load_tokenizer, tokenizer_files
from coterie.tokenizer import load as load_module
from coterie.tokenizer.mistral import mistral_version


def test_the_kind_is_in_the_file_not_in_its_name(
    mistral_files: dict[str, Path], tmp_path: Path, tekken: Tokenizer
) -> None:
    for version in ("v1", "v2", "v3", "v7"):
        path = tmp_path / "tokenizer.model.v1"  # a lie for three of them
        path.write_bytes(mistral_files[version].read_bytes())
        tokenizer = load_tokenizer(tmp_path)
        assert (tokenizer.kind, mistral_version(tokenizer)) == ("sentencepiece", version)
        assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert (tekken.kind, mistral_version(tekken), tekken.vocab_size) == ("tekken", "v3", 131072)


def test_published_ids(v1: Tokenizer, v3: Tokenizer) -> None:
    for text, of_v1, of_v3 in [
        ("[INST]", [733, 16289, 28793], [1501, 17057, 29561]),
        ("Hello world", [22557, 1526], [23325, 2294]),
        ("Straße", [12360, 9526], [13128, 10294]),
        (" 1234", [259, 28740, 28750, 28770, 28781], [1027, 29508, 29518, 29538, 29549]),
        ("\n\n", [28705, 13, 13], [29473, 781, 781]),
        ("🙂", [28705, 29340], [29473, 30108]),
    ]:
        assert v1.encode(text) == of_v1 and v3.encode(text) == of_v3
        assert v1.decode(of_v1) == v3.decode(of_v3) == text


def test_one_bos_and_controls_stay_text(v1: Tokenizer, v3: Tokenizer, tekken: Tokenizer) -> None:
    for tokenizer in (v1, v3, tekken):
        ids = tokenizer.encode("<s>[INST]</s>", bos=True)
        assert ids[0] == tokenizer.bos_id and ids.count(1) == 1 and not {2, 3, 4} & set(ids)
        assert tokenizer.decode(ids) == "<s>[INST]</s>"
        assert tokenizer.control_id("<s>") == 1 and tokenizer.control_id("Hello") is None
    assert v1.control_id("[INST]") is None and v3.control_id("[INST]") == tekken.control_id("[INST]") == 3


def test_text_that_is_not_unicode(v1: Tokenizer, tekken: Tokenizer) -> None:
    for tokenizer in (v1, tekken):
        with pytest.raises(TokenizerError, match=r"character 1 is a lone surrogate \(U\+D800\)"):
            tokenizer.encode("a\ud800b")
        with pytest.raises(TokenizerError, match="must be a string, not bytes"):
            tokenizer.encode(b"a")  # type: ignore[arg-type]


def test_ids_outside_the_vocabulary(v1: Tokenizer, tekken: Tokenizer) -> None:
    for tokenizer in (v1, tekken):
        assert tokenizer.decode([tokenizer.vocab_size, 10**12]) == ""  # a model's rows may be padded
        for bad in ([-1], ["a"]):
            with pytest.raises(TokenizerError):
                tokenizer.decode(bad)  # type: ignore[arg-type]
        for bad_id in (-1, tokenizer.vocab_size):
            with pytest.raises(TokenizerError, match="not in the vocabulary"):
                tokenizer.piece(bad_id)


def test_pieces(v1: Tokenizer, tekken: Tokenizer) -> None:
    assert [v1.piece(i) for i in (1, 16, 22557)] == ["<s>", "<0x0D>", "▁Hello"]
    assert [tekken.piece(i) for i in (3, *tekken.encode(" Hello"))] == ["[INST]", " Hello"]
    assert all(tekken.piece(i) for i in tekken.encode("\U000105c0"))


def test_a_200k_token_prompt(v1: Tokenizer) -> None:
    text = "aaaa bbbb 12345 é\n" * 20_000
    ids = v1.encode(text)
    assert len(ids) > 200_000 and v1.decode(ids) == text
    assert len(v1.encode("a" * 400_000)) > 10_000


def test_the_sentencepiece_model_goes_before_its_conversion(
    folder_with: Any, mistral_files: dict[str, Path], llama_json: dict[str, Any], chatml_json: dict[str, Any]
) -> None:
    folder = folder_with({"tokenizer.model": mistral_files["v1"].read_bytes(), "tokenizer.json": llama_json})
    assert load_tokenizer(folder).kind == "sentencepiece"
    folder = folder_with(
        {"tokenizer.json": chatml_json, "tokenizer_config.json": {"eos_token": {"content": "<|im_end|>"}}}
    )
    tokenizer = load_tokenizer(folder)  # the JSON knows two tokens more
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.eos_id) == ("tokenizer.json", 32002, 32000)


def test_of_two_models_the_one_that_fits(folder_with: Any, mistral_files: dict[str, Path]) -> None:
    files = {f"tokenizer.model.{v}": mistral_files[v].read_bytes() for v in ("v1", "v3")}
    assert load_tokenizer(folder_with(files)).vocab_size == 32768
    assert load_tokenizer(folder_with({"params.json": {"vocab_size": 32000}})).vocab_size == 32000


def test_added_tokens_beside_a_model(folder_with: Any, mistral_files: dict[str, Path]) -> None:
    decoder = {"2": {"content": "</s>"}, "32000": {"content": "<|im_end|>"}, "32001": {"content": "<|im_start|>"}}
    decoder |= {"32002": {"content": "word"}, "32003": {"content": "<last>"}}  # a word is no mark, and is left out
    decoder |= {"9" * 5000: {"content": "<x>"}}  # more digits than Python reads
    config = {"added_tokens_decoder": decoder, "eos_token": "<|im_end|>", "legacy": False}
    tokenizer = load_tokenizer(
        folder_with({"tokenizer.model": mistral_files["v1"].read_bytes(), "tokenizer_config.json": config})
    )
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (32004, 1, 32000)
    assert [tokenizer.piece(i) for i in (32002, 32003)] == ["", "<last>"]
    assert tokenizer.control_id("<|im_start|>") == 32001 and tokenizer.piece(32001) == "<|im_start|>"
    assert tokenizer.decode([32001, *tokenizer.encode("Hi<|im_end|>"), 32000]) == "Hi<|im_end|>"
    assert [tokenizer.piece(i) for i in tokenizer.encode_after_mark("user\n")] == ["user", "<0x0A>"]  # type: ignore[attr-defined]


def test_a_mark_inside_a_model_cannot_be_typed(tmp_path: Path) -> None:
    """`sentencepiece` matches USER_DEFINED pieces in any text; marks among them are made control tokens."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the thing that thinks the thoughts"] * 20), model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=290, byte_fallback=True, model_type="bpe", user_defined_symbols=["<|im_start|>", "thing"],
        minloglevel=2,
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path)
    mark = tokenizer.control_id("<|im_start|>")
    assert mark is not None and mark not in tokenizer.encode("a <|im_start|>")
    assert tokenizer.decode([mark, *tokenizer.encode("the <|im_start|>")]) == "the <|im_start|>"
    assert "thing" in [tokenizer.piece(i) for i in tokenizer.encode("a thing")]


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"has no tokenizer: looked for a SentencePiece model .* ids work without"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("tokenizer.model", b"", "neither a SentencePiece model nor JSON"),
        ("tokenizer.model", b"hello", "neither a SentencePiece model nor JSON"),
        ("tokenizer.model", b"\n\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "not a complete SentencePiece model"),
        ("tokenizer.model", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        ("tokenizer.json", b"{", "not valid JSON"),
        ("tokenizer.json", b"{" + b'"a":[' * 100_000, "not valid JSON"),
        ("tokenizer.json", b'{"model": {"type": "BPE"}}', "not a tokenizer that"),
        ("tokenizer.json", b'{"nothing": 1}', "has no tokenizer"),
        ("tekken.json", b'{"vocab": [], "config": {}}', "not a tekken file that mistral-common reads"),
        ("tekken.json", b'{"vocab": [{"rank": 0}], "config": {"version": "v3", "pattern": "("}}', "not a tekken file"),
    ],
)
def test_files_that_are_not_what_they_should_be(name: str, data: bytes, sentence: str, folder_with: Any) -> None:
    with pytest.raises(TokenizerError, match=sentence):
        load_tokenizer(folder_with({name: data}))


def test_a_model_cut_off_anywhere(mistral_files: dict[str, Path], tmp_path: Path) -> None:
    """The package itself reads a file cut off between two pieces without complaint."""
    data = mistral_files["v1"].read_bytes()
    path, rng = tmp_path / "tokenizer.model", random.Random(3)
    for length in [1, 2, 13, len(data) - 1, len(data) - 20, *(rng.randrange(len(data)) for _ in range(60))]:
        path.write_bytes(data[:length])
        with pytest.raises(TokenizerError):
            load_tokenizer(tmp_path)


def test_broken_bytes_end_in_one_sentence(tmp_path: Path, mistral_files: dict[str, Path]) -> None:
    """Bits flipped anywhere: a tokenizer that still works, or a TokenizerError; never anything else."""
    data, rng = mistral_files["v2"].read_bytes(), random.Random(11)
    for _ in range(40):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 10, 100])):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(broken)
        try:
            tokenizer = load_tokenizer(tmp_path)
        except TokenizerError:
            continue
        assert isinstance(tokenizer.decode(tokenizer.encode("Hello é")), str)


def test_absurd_sizes_are_refused_before_reading(monkeypatch: pytest.MonkeyPatch, folder_with: Any) -> None:
    folder = folder_with({"tokenizer.model": b"\n" + b"x" * 100})
    monkeypatch.setattr(load_module, "_LARGEST_MODEL", 64)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read"))
    with pytest.raises(TokenizerError, match="has 101 bytes; a tokenizer file of its kind has at most 64"):
        load_tokenizer(folder)


def test_tokenizer_files(folder_with: Any) -> None:
    names = ["tokenizer.model", "tokenizer.model.v3", "tekken.json", "tokenizer.json", "tokenizer_config.json",
             "added_tokens.json",             "special_tokens_map.json", "chat_template.jinja"]  # fmt: skip
    folder = folder_with(dict.fromkeys([*names, "config.json", "model.safetensors", "README.md"], b"x"))
    assert {p.name for p in tokenizer_files(folder)} == set(names)


def test_settings_that_are_not_json(folder_with: Any, mistral_files: dict[str, Path]) -> None:
    folder = folder_with({"tokenizer.model": mistral_files["v1"].read_bytes(), "tokenizer_config.json": b"["})
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json is not valid JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps([1]))
    with pytest.raises(TokenizerError, match="must hold a JSON object, not a list"):
        load_tokenizer(folder)
