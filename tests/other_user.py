"""Files that seem to be another user's, whoever runs the tests: root may chown, others may not."""

import os
from pathlib import Path

ANOTHER = 4_000_000


def give_away(monkeypatch, path: Path) -> None:
    """From now on lstat, stat and fstat of this file, folder or link name another user as owner."""
    own = os.lstat(path)
    real = {name: getattr(os, name) for name in ("lstat", "stat", "fstat")}

    def seen(name):
        def look(*args, **kwargs):
            found = real[name](*args, **kwargs)
            if not os.path.samestat(found, own):
                return found
            return os.stat_result((*found[:4], ANOTHER, *found[5:]))

        return look

    for name in real:
        monkeypatch.setattr(os, name, seen(name))
