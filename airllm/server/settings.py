"""What the server allows, and whom; options of `airllm serve`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LOOPBACK_HOSTS", "ServerSettings", "is_loopback"]

LOOPBACK_HOSTS = frozenset(("localhost", "127.0.0.1", "::1"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    import ipaddress  # here, because every command's start reads the defaults below

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class ServerSettings:
    """host, port: where it listens; port 0 for any free one.

    api_keys: one of which each request must name; none for anybody who can connect. hosts: the
    names by which the server may be addressed; None for any. origins: of foreign pages that may use
    it ("*" for all).
    max_body: bytes of a request. max_connections: at once. max_prompt: tokens; None for as many as
    the context has. max_tokens: of an answer, where the request does not say; None for as many as
    the context has room for.
    queue_seconds, prompt_seconds, answer_seconds: the longest that a request waits, that its prompt
    is evaluated, and that its answer is written.
    sampling: options that requests have by default. variables: of the chat template.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    hosts: frozenset[str] | None = None
    origins: frozenset[str] = frozenset()
    max_body: int = 16 << 20
    max_connections: int = 512
    max_prompt: int | None = None
    max_tokens: int | None = None
    queue_seconds: float = 600.0
    prompt_seconds: float = 3600.0
    answer_seconds: float = 3600.0
    heartbeat_seconds: float = 15.0
    body_seconds: float = 60.0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, object] = field(default_factory=dict)
    keeps_agent_headers: bool = False
