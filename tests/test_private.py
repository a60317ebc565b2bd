"""Folders and files of this user alone: what others have made, or may change, is refused."""

import os
import stat
from pathlib import Path

import pytest
from other_user import give_away

from airllm.util.private import open_own_file, open_own_folder


def opened(path, create=True):
    """The folder's device and inode."""
    descriptor = open_own_folder(path, create=create)
    found = os.fstat(descriptor)
    os.close(descriptor)
    return found.st_dev, found.st_ino


def identity(path):
    return path.stat().st_dev, path.stat().st_ino


@pytest.fixture
def folder(tmp_path):
    """A descriptor, and the path, of a folder of this user."""
    descriptor = open_own_folder(tmp_path, create=False)
    yield descriptor, tmp_path
    os.close(descriptor)


@pytest.fixture
def no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_folder_that_is_missing_is_made_for_this_user_alone(tmp_path, no_umask):
    assert opened(tmp_path / "a" / "b") == identity(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_looking_makes_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "a", create=False)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(PermissionError, match="can be written by other users") as caught:
        opened(tmp_path)
    assert caught.value.filename == str(tmp_path)


def test_another_users_folder_is_refused(tmp_path, monkeypatch):
    give_away(monkeypatch, tmp_path)
    with pytest.raises(PermissionError, match="belongs to another user"):
        opened(tmp_path)


def test_a_link_that_another_user_has_made_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    give_away(monkeypatch, tmp_path / "link")
    with pytest.raises(PermissionError, match="is a link that another user has made"):
        opened(tmp_path / "link")


def test_the_users_own_links_are_followed_also_to_a_folder_that_is_missing(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to(tmp_path / "three")
    assert opened(tmp_path / "one") == identity(tmp_path / "three")


def test_a_folder_that_becomes_a_link_when_it_has_been_looked_at_is_refused(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir(0o700)
    (tmp_path / "other").mkdir(0o700)
    look_well = Path.lstat

    def look(path):
        found = look_well(path)
        if path.name == "folder":
            path.rmdir()
            path.symlink_to("other")
        return found

    monkeypatch.setattr(Path, "lstat", look)
    with pytest.raises(NotADirectoryError):
        opened(tmp_path / "folder", create=False)


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match=str(tmp_path)):
        opened(tmp_path / "one")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        opened(tmp_path / "file")


@pytest.mark.parametrize("before", [None, 0o644, 0o666])
def test_a_file_is_for_this_user_alone_whatever_it_was(folder, no_umask, before):
    descriptor, path = folder
    if before is not None:
        (path / "f").write_bytes(b"kept")
        (path / "f").chmod(before)
    file = open_own_file(descriptor, "f", path / "f")
    assert stat.S_IMODE(os.fstat(file).st_mode) == 0o600
    assert os.read(file, 10) == (b"" if before is None else b"kept")
    os.close(file)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_a_file_is_not_followed(folder, exists):
    descriptor, path = folder
    (path / "f").symlink_to("target")
    if exists:
        (path / "target").write_bytes(b"untouched")
    with pytest.raises(PermissionError, match="is a link, which is not followed"):
        open_own_file(descriptor, "f", path / "f")
    assert (path / "target").exists() is exists


def test_a_file_with_another_name_is_refused(folder):
    descriptor, path = folder
    (path / "target").touch()
    (path / "f").hardlink_to(path / "target")
    with pytest.raises(PermissionError, match="has another name as well"):
        open_own_file(descriptor, "f", path / "f")


def test_a_pipe_is_refused_at_once(folder):
    descriptor, path = folder
    os.mkfifo(path / "f")
    with pytest.raises(PermissionError, match="is no regular file"):
        open_own_file(descriptor, "f", path / "f")


def test_another_users_file_is_refused(folder, monkeypatch):
    descriptor, path = folder
    (path / "f").touch()
    give_away(monkeypatch, path / "f")
    with pytest.raises(PermissionError, match="belongs to another user"):
        open_own_file(descriptor, "f", path / "f")
