"""Names of models in repositories of the Hugging Face Hub."""

import re
from dataclasses import dataclass
from typing import Self

__all__ = ["HOST", "HubName"]

HOST = "hf.co"
_HOSTS = (f"{HOST}/", "huggingface.co/")
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_REPO = re.compile(rf"({_PART})/({_PART})(?::([A-Za-z0-9._/-]{{1,200}}))?")


@dataclass(frozen=True)
class HubName:
    """A model in a repository: `hf.co/ORG/REPO` or `hf.co/ORG/REPO:QUANT`.

    quant: which of the repository's GGUF files, as "Q4_K_M" or the file's name; None: the only one,
    or the usual choice.
    """

    repo: str  # "ORG/REPO"
    quant: str | None = None

    @classmethod
    def parse(cls, name: str, *, with_host: bool = False) -> Self | None:
        """None if `name` is no such name. with_host: `ORG/REPO` alone, which may as well be a path,
        does not count."""
        rest = name.removeprefix("https://").removesuffix("/")
        host = next((host for host in _HOSTS if rest.startswith(host)), "")
        if with_host and not host:
            return None
        found = _REPO.fullmatch(rest.removeprefix(host))
        if found is None or ".." in found[0] or "--" in found[0]:
            return None
        return cls(f"{found[1]}/{found[2]}", found[3])

    @property
    def folder(self) -> str:
        """Its place in the folder of the models."""
        return f"{HOST}/{self.repo}"

    def __str__(self) -> str:
        return f"{HOST}/{self.repo}" + (f":{self.quant}" if self.quant else "")
