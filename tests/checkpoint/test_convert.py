import errno
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from coterie.checkpoint import convert_plan, pieces
from coterie.checkpoint.convert import convert
from coterie.checkpoint.folder import open_checkpoint
from coterie.errors import CheckpointError, ConfigError, RequestError, ResourceError


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(convert_plan, "cut", lambda entry, place, **kw: pieces.cut(entry, place, 64, **kw))


def weights(folder):
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


CHANGES = [{}, {"num_local_experts": None, "sliding_window": 8}, {"tie_word_embeddings": True, "eos_token_id": (2, 3)}]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("changes", CHANGES)
def test_there_and_back_is_bit_for_bit(make_tiny, dtype, changes, tmp_path):
    source = make_tiny(dtype, **changes).huggingface(n_files=2)
    convert(source, tmp_path / "there", to="mistral")
    convert(tmp_path / "there", tmp_path / "back", to="huggingface")
    assert_same(weights(tmp_path / "back"), weights(source))
    assert open_checkpoint(tmp_path / "back").config == open_checkpoint(source).config
    ours, theirs = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "back", source))
    assert ours == theirs


def test_what_is_written_is_what_mistrals_own_layout_says(tiny, tmp_path):
    convert(tiny.huggingface(), tmp_path / "out", to="mistral")
    assert_same(weights(tmp_path / "out"), weights(tiny.mistral()))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"params.json", "consolidated.safetensors"}


def test_fused_weights_become_one_tensor_per_expert(tiny, tmp_path):
    convert(tiny.huggingface("fused", fused=True), tmp_path / "out", to="huggingface")
    assert_same(weights(tmp_path / "out"), weights(tiny.huggingface()))


def test_the_same_format_is_a_copy(tiny, tmp_path):
    source = tiny.mistral(n_files=2)
    convert(source, tmp_path / "out", to="mistral")
    assert_same(weights(tmp_path / "out"), weights(source))


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16), ("float32", torch.float32)]
)
def test_another_type_is_torchs_own_conversion(tiny, tmp_path, name, dtype):
    convert(tiny.huggingface(), tmp_path / "out", to="mistral", type=name)
    expected = {n: t.to(dtype) for n, t in weights(tiny.mistral()).items()}
    assert_same(weights(tmp_path / "out"), expected)
    assert open_checkpoint(tmp_path / "out").config.torch_dtype == str(dtype).removeprefix("torch.")


def test_tokenizer_and_generation_files_go_along(tiny, tmp_path):
    source = tiny.huggingface()
    (source / "tokenizer.model").write_bytes(b"pieces")
    (source / "generation_config.json").write_text('{"eos_token_id": 7}')
    (source / "notes.txt").write_text("stays")
    convert(source, tmp_path / "there", to="mistral")
    convert(tmp_path / "there", tmp_path / "back", to="huggingface")
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == b"pieces"
    assert (tmp_path / "back" / "generation_config.json").read_text() == '{"eos_token_id": 7}'
    assert not (tmp_path / "back" / "notes.txt").exists()


def test_progress_counts_what_was_read(tiny, tmp_path):
    seen = []
    convert(tiny.huggingface(), tmp_path / "out", to="mistral", progress=lambda *x: seen.append(x))
    total = sum(t.nbytes for t in tiny.tensors.values())
    assert seen[-1] == (total, total)


def only(tmp_path, *names):
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names), "something was left behind"


def test_nan_is_found_and_named(tiny, tmp_path):
    def damage(named):
        named["model.layers.0.self_attn.k_proj.weight"][1, 1] = float("nan")

    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.self_attn\.k_proj\.weight' contains 1 NaN"):
        convert(tiny.huggingface(edit=damage), tmp_path / "out", to="mistral")
    only(tmp_path, "hf")


def test_numbers_beyond_float16_are_refused(tiny, tmp_path):
    tiny.tensors["layers.1.moe.experts.down"][2, 3, 4] = -1e6
    with pytest.raises(CheckpointError, match=r"experts\.2\.w2\.weight' contains 1e\+06, beyond float16's 65504"):
        convert(tiny.huggingface(), tmp_path / "out", to="huggingface", type="f16")
    only(tmp_path, "hf")


def test_ctrl_c_leaves_nothing(tiny, tmp_path):
    def interrupt(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny.huggingface(), tmp_path / "new" / "out", to="mistral", progress=interrupt)
    only(tmp_path, "hf")


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota"), (errno.EIO, "error")],
)
def test_a_disk_that_gives_out_is_one_sentence_and_leaves_nothing(tiny, tmp_path, monkeypatch, number, said):
    sync, count = os.fsync, iter(range(100))

    def fail_second(fd):
        if next(count) == 1:
            raise OSError(number, os.strerror(number))
        sync(fd)

    source = tiny.huggingface()
    monkeypatch.setattr(os, "fsync", fail_second)
    with pytest.raises(ResourceError, match=f"out cannot be written: .*{said}") as caught:
        convert(source, tmp_path / "out", to="huggingface")
    assert "\n" not in str(caught.value)
    only(tmp_path, "hf")


def test_a_folder_that_may_not_be_written_is_one_sentence(tiny, tmp_path, monkeypatch):
    """The superuser may write anywhere, so it is mkdir that refuses, as it does for others in a closed folder."""

    def refuse(self, *args, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    source = tiny.huggingface()
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(ResourceError, match="this user may not write there"):
        convert(source, tmp_path / "out", to="mistral")
    only(tmp_path, "hf")


def test_the_disk_is_looked_at_first(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ResourceError, match="free some or name a folder on another disk"):
        convert(tiny.huggingface(), tmp_path / "out", to="mistral")
    only(tmp_path, "hf")


def test_a_destination_that_exists_is_refused_and_kept(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(tiny.huggingface(), tmp_path / "out", to="mistral")
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_unknown_formats_and_types_name_the_nearest(tiny, tmp_path):
    source = tiny.huggingface()
    with pytest.raises(RequestError, match="did you mean 'mistral'"):
        convert(source, tmp_path / "out", to="mistal")
    with pytest.raises(ConfigError, match="did you mean 'bf16'"):
        convert(source, tmp_path / "out", to="mistral", type="b16")


def test_tied_embeddings_that_differ_from_their_copy_are_refused(make_tiny, tmp_path):
    tiny = make_tiny(tie_word_embeddings=True)
    source = tiny.huggingface(edit=lambda named: named.update({"lm_head.weight": tiny.tensors["embed"] * 2}))
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        convert(source, tmp_path / "out", to="mistral")
    only(tmp_path, "hf")
