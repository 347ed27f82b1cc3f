"""Writing packed folders: what was cut off goes on, nothing half-done looks whole, what is amiss is said."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.checkpoint.convert import convert
from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.gguf import read_header
from coterie.checkpoint.huggingface import save_huggingface
from coterie.checkpoint.load import load_model
from coterie.checkpoint.packed import open_packed
from coterie.checkpoint.verify import verify
from coterie.errors import CheckpointError, CoterieError, RequestError, ResourceError
from coterie.model import Transformer

MakeModel = Callable[..., Transformer]
SPARSE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
ODD = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2}  # its experts cannot be packed


def test_what_is_asked_for_must_exist(sparse: Path, tmp_path: Path) -> None:
    for options, match in (
        ({"to": "packed"}, "--type int8"),
        ({"to": "packed", "type": "int7"}, "int7"),
        ({"to": "packed", "type": "int4", "method": "hq"}, "did you mean 'hqq'"),
        ({"to": "mistral", "method": "hqq"}, "packed"),
    ):
        with pytest.raises(RequestError, match=match):
            convert(sparse, tmp_path / "out", **options)  # type: ignore[arg-type]
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_what_cannot_be_packed_is_said_and_stays_as_it_was(make_model: MakeModel, tmp_path: Path) -> None:
    model, said = make_model(**ODD), list[str]()
    save_huggingface(tmp_path / "source", model.config, model.tensors(), dtype="bf16")
    convert(tmp_path / "source", tmp_path / "packed", to="packed", type="int4", notice=said.append)
    assert len(said) == 1
    assert "16 matrices stay bfloat16 because intermediate_size is 48, no multiple of 32" in said[0]
    checkpoint = open_packed(tmp_path / "packed")
    assert checkpoint.stored()["feedforward"].keys() == {"BF16"}
    assert "16 matrices are not packed" in (tmp_path / "packed" / "README.md").read_text()
    load_model(tmp_path / "packed")


def test_nan_is_an_error_that_names_the_tensor_and_leaves_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(**SPARSE)
    save_huggingface(tmp_path / "source", model.config, model.tensors(), dtype="float32")
    file = tmp_path / "source" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    at = start + header["model.embed_tokens.weight"]["data_offsets"][0]
    raw[at : at + 4] = b"\x00\x00\xc0\x7f"
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match="embed_tokens"):
        convert(tmp_path / "source", tmp_path / "packed", to="packed", type="int4")
    assert {p.name for p in tmp_path.iterdir()} == {"source"}


def test_what_was_cut_off_goes_on_with_the_layers_that_are_done(
    sparse: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coterie.checkpoint import packed_write

    plain, done = packed_write.quantised_parts, list[str]()

    def limited(checkpoint: Any, planned: Any, *rest: Any) -> Any:
        done.append(planned[0].name)
        if len(done) == 3:
            raise KeyboardInterrupt
        return plain(checkpoint, planned, *rest)

    monkeypatch.setattr(packed_write, "quantised_parts", limited)
    target, said = tmp_path / "again", list[str]()
    with pytest.raises(KeyboardInterrupt):
        convert(sparse, target, to="packed", type="int4")
    assert not target.exists()
    with pytest.raises(CoterieError):
        open_checkpoint(tmp_path / "again.partial")
    seen: list[tuple[int, int]] = []
    convert(sparse, target, to="packed", type="int4", notice=said.append, progress=lambda *n: seen.append(n))
    assert "2 of 5 pieces" in said[0]  # embed, layer 0, layer 1, norm, head
    assert done[3:] == ["layers.1.attention.q", "norm", "head"]
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)
    for name in ("model.safetensors", "SHA256SUMS"):
        assert (target / name).read_bytes() == (packed / name).read_bytes()
    assert not (tmp_path / "again.partial").exists()


def test_another_recipe_starts_anew(sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.checkpoint import packed_write

    with monkeypatch.context() as m:
        m.setattr(packed_write, "write_packed_sidecars", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            convert(sparse, tmp_path / "a", to="packed", type="int4")
    said: list[str] = []
    convert(sparse, tmp_path / "a", to="packed", type="int3", notice=said.append)
    convert(sparse, tmp_path / "b", to="packed", type="int3")
    assert said == []
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_two_at_once_do_not_mix(sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.checkpoint import packed_write

    plain = packed_write.write_packed_sidecars

    def meanwhile(*parts: Any) -> None:
        monkeypatch.setattr(packed_write, "write_packed_sidecars", plain)
        with pytest.raises(ResourceError, match="another process"):
            convert(sparse, tmp_path / "packed", to="packed", type="int4")
        plain(*parts)

    monkeypatch.setattr(packed_write, "write_packed_sidecars", meanwhile)
    convert(sparse, tmp_path / "packed", to="packed", type="int4")
    verify(tmp_path / "packed").require_ok(tmp_path / "packed")


def test_an_existing_destination_is_refused(sparse: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="exists already"):
        convert(sparse, tmp_path / "there", to="packed", type="int4")
    (tmp_path / "empty").mkdir()
    convert(sparse, tmp_path / "empty", to="packed", type="int4")


def test_what_is_not_ours_is_left_where_the_work_would_go_on(sparse: Path, tmp_path: Path) -> None:
    """Everything in DST.partial was deleted to start anew, whoever's it was."""
    (tmp_path / "packed.partial").mkdir()
    (tmp_path / "packed.partial" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="holds something else; move it away"):
        convert(sparse, tmp_path / "packed", to="packed", type="int4")
    assert (tmp_path / "packed.partial" / "mine").read_text() == "x"


def test_where_nothing_can_be_written_nothing_is_said_to_be_kept(sparse: Path) -> None:
    with pytest.raises(ResourceError, match=r"cannot be written: .*; nothing is done$"):
        convert(sparse, Path("/proc/nowhere/packed"), to="packed", type="int4")


def test_a_name_that_is_no_utf_8_may_be_a_sources(sparse: Path, tmp_path: Path) -> None:
    source = sparse.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    convert(source, tmp_path / "packed", to="packed", type="int4")
    convert(source, tmp_path / "x.gguf", to="gguf")
    assert (tmp_path / "packed" / "README.md").read_text().count("# caf?, packed") == 1
    assert read_header(tmp_path / "x.gguf").metadata["general.name"] == "caf?"


def test_killed_at_any_moment_it_is_whole_or_goes_on(make_model: MakeModel, tmp_path: Path) -> None:
    """SIGKILL after ever more time; what is there afterwards is nothing, an unfinished folder, or the whole."""
    fields = SPARSE | {"num_hidden_layers": 6, "hidden_size": 128, "intermediate_size": 256}
    model = make_model(**fields, vocab_size=340)
    save_huggingface(tmp_path / "source", model.config, model.tensors(), dtype="float32")
    convert(tmp_path / "source", tmp_path / "whole", to="packed", type="int4")
    code = (
        "import coterie.checkpoint.packed_write; from pathlib import Path; "
        "from coterie.checkpoint.convert import convert; print('go', flush=True); "
        f"convert(Path({str(tmp_path / 'source')!r}), Path({str(tmp_path / 'out')!r}), to='packed', type='int4')"
    )
    for delay in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, None):
        p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert p.stdout is not None and p.stdout.readline() == b"go\n"
        if delay is not None:
            time.sleep(delay)
            p.send_signal(signal.SIGKILL)
        p.wait()
        p.stdout.close()
        if (tmp_path / "out").exists():
            break
        for partial in tmp_path.glob("out.partial"):
            with pytest.raises(CoterieError):
                open_checkpoint(partial)
    for name in ("model.safetensors", "SHA256SUMS", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
