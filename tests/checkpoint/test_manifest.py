import pytest

from coterie.checkpoint.manifest import files_of, read_manifest, save_manifest
from coterie.errors import CheckpointError

DIGEST = "0123456789abcdef" * 4


def test_a_manifest_survives_writing_and_reading(tmp_path):
    digests = {"b.safetensors": DIGEST, "a b é.json": DIGEST[::-1]}
    save_manifest(tmp_path, digests)
    assert read_manifest(tmp_path) == digests
    assert [p.name for p in tmp_path.iterdir()] == ["SHA256SUMS"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{DIGEST}  ../x\n", "points outside"),
        (f"{DIGEST}  /etc/passwd\n", "points outside"),
        (f"{DIGEST}  a/../../x\n", "points outside"),
        (f"\\{DIGEST}  a\\nb\n", "line 1"),
        (f"{DIGEST} x\n", "line 1"),
        (f"{DIGEST[1:]}  x\n", "line 1"),
        (f"{DIGEST}  x\n\n", "line 2"),
        (f"{DIGEST}  x\n{DIGEST[::-1]}  x\n", "twice"),
        ("", "lists no file"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(tmp_path, text, said):
    (tmp_path / "SHA256SUMS").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        read_manifest(tmp_path)


def test_a_binary_manifest_is_refused(tmp_path):
    (tmp_path / "SHA256SUMS").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="UTF-8"):
        read_manifest(tmp_path)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").symlink_to(tmp_path / "secret")
    (folder / "SHA256SUMS").write_text(f"{DIGEST}  a\n")
    with pytest.raises(CheckpointError, match="is a link to"):
        read_manifest(folder)


def test_hidden_files_and_the_manifest_itself_are_not_listed(tmp_path):
    for name in ("a.json", ".git/config", "sub/b.json", "SHA256SUMS", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert files_of(tmp_path) == ["a.json", "sub/b.json"]
