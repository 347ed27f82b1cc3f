import subprocess

import pytest
import torch

from coterie.checkpoint.folder import open_checkpoint
from coterie.checkpoint.verify import verify, write_manifest
from coterie.errors import CheckpointError


@pytest.fixture
def folder(tiny):
    folder = tiny.huggingface(n_files=2)
    (folder / "tokenizer.model").write_bytes(b"pieces")
    return folder


def test_without_a_manifest_it_fails_and_says_how_to_make_one(folder):
    with pytest.raises(CheckpointError, match=f"no SHA256SUMS.*coterie verify {folder} --write"):
        verify(folder)


def test_without_a_manifest_the_weights_are_looked_at_even_so(tiny):
    with pytest.raises(CheckpointError, match="of its 41 tensors none is damaged"):
        verify(tiny.huggingface("sound"))
    with pytest.raises(
        CheckpointError, match=r"no SHA256SUMS.*lm_head\.weight' contains 1 Inf.*v_proj\.weight' contains"
    ):
        verify(tiny.huggingface("unsound", edit=damage))


def test_a_sound_folder_is_sound(folder):
    written = write_manifest(folder)
    report = verify(folder)
    assert report.problems == [] and report == written
    assert (report.n_files, report.n_tensors) == (5, 41)
    report.require_ok(folder)


def test_sha256sum_reads_what_is_written(folder):
    write_manifest(folder)
    run = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_manifest_of_sha256sum_is_read(folder):
    names = sorted(p.name for p in folder.iterdir())
    sums = subprocess.run(["sha256sum", "-b", *names], cwd=folder, capture_output=True, text=True, check=True).stdout
    (folder / "SHA256SUMS").write_text(sums)
    assert verify(folder).problems == []


def test_one_changed_bit_a_lost_file_and_a_new_one_are_named(folder):
    write_manifest(folder)
    path = folder / "model-00002-of-00002.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    (folder / "tokenizer.model").unlink()
    (folder / "notes.txt").write_text("x")
    report = verify(folder)
    assert (report.changed, report.missing, report.unlisted) == ([path.name], ["tokenizer.model"], ["notes.txt"])
    with pytest.raises(CheckpointError, match=r"differ from the manifest: model-00002.*are missing: tokenizer\.model"):
        report.require_ok(folder)


def test_only_files_that_a_model_reads_must_be_listed(folder):
    write_manifest(folder)
    (folder / "notes.txt").write_text("x")
    assert verify(folder).problems == []
    (folder / "tokenizer.json").write_text("{}")
    assert "not in the manifest: tokenizer.json" in verify(folder).problems[0]


def damage(named):
    named["model.layers.1.self_attn.v_proj.weight"][2, 2] = float("nan")
    named["lm_head.weight"][0, 0] = float("inf")


def test_a_file_of_numbers_smaller_than_a_byte_is_read(folder):
    """Four bits a number divided by zero; a model may lie beside such a file."""
    raw = b'{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]},'
    raw += b'"b":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[2,5]}}'
    (folder / "adapter.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(5))
    assert write_manifest(folder).problems == [] == verify(folder).problems


def test_damaged_weights_are_found_whatever_the_manifest_says(make_tiny):
    folder = make_tiny(torch.bfloat16).huggingface(edit=damage)
    with pytest.raises(CheckpointError, match=r"v_proj\.weight' contains 1 NaN"):
        write_manifest(folder)
    assert not (folder / "SHA256SUMS").exists()
    sums = subprocess.run("sha256sum * > SHA256SUMS", shell=True, cwd=folder, check=True)
    assert sums.returncode == 0
    report = verify(folder)
    assert report.changed == [] and len(report.damaged) == 2


def test_a_truncated_file_is_both_changed_and_damaged(folder):
    write_manifest(folder)
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    report = verify(folder)
    assert report.changed == [path.name]
    assert "is truncated" in report.damaged[0]


def test_a_model_that_does_not_fit_its_configuration_is_not_sound(folder):
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        write_manifest(folder)


def test_a_manifest_is_replaced_when_asked(folder):
    write_manifest(folder)
    (folder / "notes.txt").write_text("x")
    write_manifest(folder)
    assert verify(folder).unlisted == []


def test_progress_reaches_the_end_and_ctrl_c_stops(folder):
    seen = []
    write_manifest(folder, progress=lambda *x: seen.append(x))
    assert seen[-1][0] == seen[-1][1] > 0

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(folder, progress=interrupt)


def test_what_is_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(CheckpointError, match="not a folder"):
        verify(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no file"):
        write_manifest(tmp_path)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K"])
def test_a_gguf_file_is_checked_against_the_manifest_of_its_folder(make_tiny, kind):
    path, _ = make_tiny(hidden_size=256, intermediate_size=256, head_dim=64, num_hidden_layers=1).gguf(kind=kind)
    (path.parent / "other.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"model\.gguf has no SHA256SUMS.*none is damaged"):
        verify(path)
    write_manifest(path.parent)
    report = verify(path)
    assert not report.problems and report.n_files == 1 and report.n_tensors == 13
    entry = next(e for e in open_checkpoint(path).entries if e.name == "blk.0.attn_v.weight")
    with open(path, "r+b") as f:
        f.seek(entry.offset)
        f.write(b"\xff\xff")
    report = verify(path)
    assert report.changed == ["model.gguf"] and len(report.damaged) == 1
    assert "attn_v.weight" in report.damaged[0] and "1 NaN" in report.damaged[0]
    assert verify(path.parent).damaged == report.damaged


def test_every_part_of_a_split_gguf_file_is_checked(make_tiny):
    path, _ = make_tiny().gguf(n_files=3)
    write_manifest(path.parent)
    assert verify(path).n_files == 3 and not verify(path.parent).problems
    path.with_name("model-00002-of-00003.gguf").write_bytes(b"GGUF")
    report = verify(path)
    assert report.changed == ["model-00002-of-00003.gguf"] and "should have 4 bytes" in report.damaged[0]
