"""Folders and files that no other user can redirect, change or read.

A folder in /tmp can be made by anybody first: as a link to somewhere else, or as a folder that its
maker can still write to. What is opened here is this user's, or it is refused.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path

__all__ = ["check_own_file", "open_own_file", "open_own_folder"]

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 8  # of this user, one pointing to the next


def open_own_folder(path: Path, *, create: bool) -> int:
    """A descriptor of a folder of this user to which nobody else can write.

    create: make it, with mode 0700, where it is missing. A link is followed only where this user
    or root has made it. PermissionError where the folder or the link is somebody else's, or others
    may write to the folder; other OSErrors as mkdir and open.
    """
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_MOST_LINKS):
        if create:
            with contextlib.suppress(FileExistsError):  # what it is, is looked at now
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

    shown: its path, for errors. PermissionError where it is another user's, a link, no regular
    file, or has a second name somewhere; other OSErrors as open.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC  # both ways: no pipe waits
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
    """PermissionError unless it is a regular file of this user with a single name."""
    if not stat.S_ISREG(found.st_mode):
        raise _refused(shown, "is no regular file")
    if found.st_uid != os.geteuid():
        raise _refused(shown, "belongs to another user")
    if found.st_nlink != 1:
        raise _refused(shown, "has another name as well (a hard link), whose file would change")


def _refused(path: Path, why: str) -> PermissionError:
    return PermissionError(errno.EACCES, why, str(path))
