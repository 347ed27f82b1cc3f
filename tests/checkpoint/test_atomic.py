import errno
import os
import subprocess
import sys

import pytest

from coterie.checkpoint.atomic import _unnamed, disk_errors, new_file, new_folder, require_disk
from coterie.errors import CheckpointError, ResourceError


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    with new_file(tmp_path / "a") as f:
        f.write(b"x" * 100_000)
        assert "a" not in names(tmp_path)
    assert (tmp_path / "a").read_bytes() == b"x" * 100_000
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system gives every file a name")
def test_a_killed_process_leaves_no_file(tmp_path):
    if _unnamed(tmp_path) is None:
        pytest.skip("this disk gives every file a name")
    code = "import os, sys; from pathlib import Path; from coterie.checkpoint.atomic import new_file\n" + (
        "with new_file(Path(sys.argv[1])) as f: f.write(bytes(100_000)); f.flush(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")]).returncode == -9
    assert names(tmp_path) == []


@pytest.mark.parametrize("missing", ["O_TMPFILE", "link"])
def test_systems_that_cannot_do_without_a_name(tmp_path, monkeypatch, missing):
    (tmp_path / "a").write_bytes(b"old")
    if missing == "link":

        def refuse(*args, **kwargs):
            raise OSError(errno.EXDEV, "no")

        monkeypatch.setattr(os, "link", refuse)
    else:
        monkeypatch.delattr(os, missing, raising=False)
    with new_file(tmp_path / "a") as f:
        f.write(b"x" * 100_000)
    assert (tmp_path / "a").read_bytes() == b"x" * 100_000 and names(tmp_path) == ["a"]


def test_a_folder_appears_when_it_is_whole_and_parents_are_made(tmp_path):
    with new_folder(tmp_path / "a" / "b" / "c") as partial:
        (partial / "f").write_text("x")
        assert not (tmp_path / "a" / "b" / "c").exists()
    assert names(tmp_path / "a" / "b") == ["c"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_whatever_goes_wrong_nothing_stays(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "a" / "b") as partial:
        (partial / "f").write_text("x")
        raise error
    with pytest.raises(error), new_file(tmp_path / "f") as f:
        f.write(b"x")
        raise error
    assert names(tmp_path) == []


def test_an_empty_folder_may_be_filled_and_a_full_one_not(tmp_path):
    (tmp_path / "a").mkdir()
    with new_folder(tmp_path / "a") as partial:
        (partial / "f").write_text("x")
    with pytest.raises(CheckpointError, match="exists"), new_folder(tmp_path / "a"):
        pytest.fail("entered")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="exists"), new_folder(tmp_path / "link"):
        pytest.fail("entered")


def test_replacing_keeps_the_old_folder_until_the_new_one_is_whole(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("x")
    with pytest.raises(ValueError), new_folder(tmp_path / "a", replace=True):
        raise ValueError
    assert names(tmp_path / "a") == ["old"]
    with new_folder(tmp_path / "a", replace=True) as partial:
        (partial / "new").write_text("x")
    assert names(tmp_path / "a") == ["new"] and names(tmp_path) == ["a"]


def test_the_operating_systems_refusal_is_one_sentence(tmp_path):
    for number, said in (
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may not write"),
    ):
        with pytest.raises(ResourceError, match=said), disk_errors(tmp_path / "x"):
            raise OSError(number, os.strerror(number))


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(ResourceError, match="not a directory"), new_folder(tmp_path / "f" / "out"):
        pytest.fail("entered")


def test_free_disk_is_checked_at_the_nearest_folder_that_exists(tmp_path):
    require_disk(tmp_path / "a" / "b", 1)
    with pytest.raises(ResourceError, match="needs"):
        require_disk(tmp_path / "a" / "b", 1 << 60)
