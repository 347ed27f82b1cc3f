import pytest

from coterie.checkpoint.inside import inside
from coterie.errors import CheckpointError


def test_names_in_the_folder_and_below_are_taken(tmp_path):
    assert inside(tmp_path / "list", "a") == tmp_path / "a"
    assert inside(tmp_path / "list", "sub/a") == tmp_path / "sub" / "a"


@pytest.mark.parametrize("name", ["..", "../a", "sub/../../a", "/a", "", ".", "a\nb", "\x1b[2J", "..\\a"])
def test_names_that_lead_out_or_hide_something_are_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="points outside"):
        inside(tmp_path / "list", name)


def test_a_folder_that_links_out_is_refused_and_a_link_within_is_not(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="is a link"):
        inside(folder / "list", "out/secret")
    (folder / "real").write_text("x")
    (folder / "alias").symlink_to("real")
    assert inside(folder / "list", "alias") == folder / "alias"
