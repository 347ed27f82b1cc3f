"""`coterie convert` and `coterie verify` as a person meets them."""

import json

import pytest
import torch

from coterie.checkpoint.load import load_model
from coterie.cli.main import main


def test_convert_writes_and_says_what(tiny, tmp_path, capsys):
    assert main(["convert", str(tiny.huggingface()), str(tmp_path / "out"), "--to", "mistral"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "wrote" in err
    model = load_model(tmp_path / "out", device="cpu")
    assert all(torch.equal(t, tiny.tensors[name]) for name, t in model.tensors().items())


def test_convert_takes_a_type_and_refuses_what_it_does_not_know(tiny, tmp_path, capsys):
    source = str(tiny.huggingface())
    assert main(["convert", source, str(tmp_path / "out"), "--to", "huggingface", "--type", "bf16"]) == 0
    capsys.readouterr()
    for arguments in (["--to", "huggingfac"], ["--to", "mistral", "--type", "f17"], []):
        assert main(["convert", source, str(tmp_path / "new"), *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("coterie: ") and err.count("\n") == 1
        assert not (tmp_path / "new").exists()


def test_verify_from_no_manifest_to_a_damaged_file(tiny, capsys):
    folder = tiny.huggingface()
    assert main(["verify", str(folder)]) == 2
    assert "--write" in capsys.readouterr().err
    assert main(["verify", str(folder), "--write"]) == 0
    assert main(["verify", str(folder)]) == 0
    assert "as the manifest says" in capsys.readouterr().out
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    (folder / "notes.txt").write_text("x")
    assert main(["verify", str(folder)]) == 2
    err = capsys.readouterr().err
    assert "not in the manifest: notes.txt" in err and "config.json" in err.splitlines()[-1]


@pytest.mark.parametrize("is_sound", [True, False])
def test_verify_as_json(tiny, capsys, is_sound):
    folder = tiny.huggingface()
    assert main(["verify", str(folder), "--write", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] is True
    if not is_sound:
        (folder / "generation_config.json").write_text("{}")
    assert main(["verify", str(folder), "--json"]) == (0 if is_sound else 2)
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is is_sound
    assert document["unlisted"] == ([] if is_sound else ["generation_config.json"])
