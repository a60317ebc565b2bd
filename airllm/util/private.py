"""Folders and files that no other user can redirect, change or read.

Anybody can be the first to make a folder in /tmp: as a link to somewhere else, or as a folder to
which its maker can still write. These functions refuse whatever does not belong to this user.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path

__all__ = ["check_own_file", "open_own_file", "open_own_folder"]

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 8  # in a chain


def open_own_folder(path: Path, *, create: bool) -> int:
    """A descriptor of a folder of this user to which nobody else can write.

    create: make the folder, with mode 0700, if it is missing. A link is followed only if this user
    or root has made it. PermissionError if the folder or the link belongs to somebody else, or if
    others may write to the folder; other OSErrors as mkdir and open.
    """
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_MOST_LINKS):
        if create:
            with contextlib.suppress(FileExistsError):  # lstat shows what exists
                path.mkdir(mode=0o700)
        found = path.lstat()
        if not stat.S_ISLNK(found.st_mode):
            break
        if found.st_uid not in (os.geteuid(), 0):
            raise _refused(path, "is a link that another user has made")
        path = path.parent / path.readlink()
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise _refused(path, "belongs to another user")
        if found.st_mode & _OTHERS_WRITE:
            raise _refused(path, "can be written by other users; `chmod go-w` changes that")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_own_file(folder: int, name: str, shown: Path) -> int:
    """Open a file of open_own_folder's folder to read and write, or create it, for this user alone:
    mode 0600.

    shown: the path for errors. PermissionError if the file belongs to another user, is a link, is
    not a regular file, or has a second name (a hard link); other OSErrors as open.
    """
    flags = (
        os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    )  # a pipe opened with O_RDWR does not wait
    try:
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refused(shown, "is a link, which is not followed") from None
        raise OSError(error.errno, error.strerror, str(shown)) from None
    try:
        check_own_file(os.fstat(descriptor), shown)
        os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_own_file(found: os.stat_result, shown: Path) -> None:
    """PermissionError unless `found` is a regular file of this user with a single name."""
    if not stat.S_ISREG(found.st_mode):
        raise _refused(shown, "is no regular file")
    if found.st_uid != os.geteuid():
        raise _refused(shown, "belongs to another user")
    if found.st_nlink != 1:
        raise _refused(shown, "has another name as well (a hard link), and would change there, too")


def _refused(path: Path, why: str) -> PermissionError:
    return PermissionError(errno.EACCES, why, str(path))
