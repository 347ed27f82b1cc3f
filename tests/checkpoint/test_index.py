import json
import shutil

import pytest

from coterie.checkpoint.folder import open_checkpoint
from coterie.errors import CheckpointError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tiny):
    return tiny.huggingface(n_files=2)


def edit_index(folder, edit):
    path = folder / "model.safetensors.index.json"
    document = json.loads(path.read_text())
    edit(document["weight_map"])
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x", "..", "", "a\\b", "a\0b", "."])
def test_an_index_that_points_outside_is_refused(folder, name):
    (folder.parent / "x.safetensors").write_bytes((folder / FIRST).read_bytes())
    edit_index(folder, lambda m: m.update({"lm_head.weight": name}))
    with pytest.raises(CheckpointError, match="points outside its folder"):
        open_checkpoint(folder)


def test_a_link_out_of_the_folder_is_refused(folder):
    (folder / FIRST).rename(folder.parent / "elsewhere")
    (folder / FIRST).symlink_to(folder.parent / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link to"):
        open_checkpoint(folder)


def test_the_links_of_the_hugging_face_cache_are_followed(folder, tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    shutil.copytree(folder, snapshot)
    blobs.mkdir()
    for path in list(snapshot.iterdir()):
        path.rename(blobs / path.name.replace(".", "_"))
        path.symlink_to(f"../../blobs/{path.name.replace('.', '_')}")
    assert len(open_checkpoint(snapshot).files) == 2


def test_a_file_that_is_not_there_is_named(folder):
    (folder / SECOND).unlink()
    with pytest.raises(CheckpointError, match=f"{SECOND}.*no such file"):
        open_checkpoint(folder)


def test_index_and_files_must_agree(folder):
    edit_index(folder, lambda m: m.update({"made.up": FIRST}))
    with pytest.raises(CheckpointError, match=r"in no file, 'made\.up'"):
        open_checkpoint(folder)
    edit_index(folder, lambda m: [m.pop("made.up"), m.pop("lm_head.weight")])
    with pytest.raises(CheckpointError, match="misses 1 tensors"):
        open_checkpoint(folder)
    edit_index(folder, lambda m: m.update({"lm_head.weight": FIRST}))
    edit_index(folder, lambda m: m.update({"lm_head.weight": SECOND if _holds(folder / FIRST) else FIRST}))
    with pytest.raises(CheckpointError, match=r"says that 'lm_head\.weight'"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "text", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[]", "{"]
)
def test_an_index_of_another_form_is_refused(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(folder)


def _holds(file) -> bool:
    return b"lm_head.weight" in file.read_bytes()
