"""Runs a coding agent, a program that nobody here wrote, against a server with a real engine.

    python tests/agent_session.py codex|claude FOLDER

The process has a network of its own, with loopback only, so that the agent reaches nothing else.
The model is tiny and random, and a grammar makes its answers: calls of tools, which the agent runs,
and an end. Prints a line of JSON: what the agent printed, and each prompt's length and end.
"""

import ctypes
import fcntl
import importlib.util
import json
import os
import shlex
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
QUESTION = "What is in the file here?"
SECONDS = 50  # for a run of the agent

_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


def only_loopback() -> None:
    """OSError where the system gives no process a network of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEWNET) and libc.unshare(_NEWUSER | _NEWNET):
        raise OSError(ctypes.get_errno(), "no network of its own")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP))


def program(name: str) -> Path | None:
    """The agent's program in its package; None if that is not installed."""
    package, path = {
        "codex": ("codex_cli_bin", "bin/codex"),
        "claude": ("claude_agent_sdk", "_bundled/claude"),
    }[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / path
    return found if found.exists() else None


def settings(language: str, agent: str, url: str) -> str:
    """The settings of an agent as docs/pages/server.md shows them, but with this server."""
    page = (TESTS.parent / "docs/pages/server.md").read_text(encoding="utf-8")
    section = page.split(f"\n### {agent}\n")[1]
    block = section.split(f"```{language}\n")[1].split("```")[0]
    return block.replace("http://127.0.0.1:8080", url)


def codex(url: str, folder: Path) -> tuple[Sequence[str], dict[str, str]]:
    """The command and the environment."""
    home = folder / "codex"
    home.mkdir()
    more = "\n[analytics]\nenabled = false\n"
    (home / "config.toml").write_text(settings("toml", "Codex", url) + more)
    options = ("--skip-git-repo-check", "-s", "danger-full-access", "-C", str(folder))
    return ("exec", *options, QUESTION), {"CODEX_HOME": str(home)}


def claude(url: str, folder: Path) -> tuple[Sequence[str], dict[str, str]]:
    """The command and the environment."""
    options = ("-p", "--tools", "Bash,Read", "--allowedTools", "Bash,Read", "--")
    words = shlex.split(settings("sh", "Claude Code", url))
    shown = dict(word.split("=", 1) for word in words if "=" in word)
    return (*options, QUESTION), {**shown, "DISABLE_AUTOUPDATER": "1"}


def answers(name: str) -> Callable[[int], str]:
    """The answer to a prompt by the number of results that it has: two calls at once, one, none."""
    tool, argument = {"codex": ("exec_command", "cmd"), "claude": ("Bash", "command")}[name]

    def call(command: str) -> str:
        written = json.dumps({"name": tool, "arguments": {argument: command}})
        return f"\n<tool_call>\n{written}\n</tool_call>"

    said = {0: f"I look.{call('ls')}{call('cat letter.txt')}", 2: call("wc -c letter.txt")}
    return lambda n: said.get(n, "That is all.")


def run(name: str, folder: Path) -> dict[str, Any]:
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    from running_server import RunningServer
    from scripted_server import TEMPLATE
    from tiny_model import Sizes, write_tiny_model

    from airllm.server.served_model import ServedModel

    binary = program(name)
    assert binary is not None
    sizes = Sizes(context=1 << 16, n_layers=1)
    model = write_tiny_model(folder, sizes=sizes, metadata={"tokenizer.chat_template": TEMPLATE})
    (folder / "letter.txt").write_text("Dear reader, it works.\n")
    answer = answers(name)
    requests: list[Any] = []

    class Scripted:
        """The scheduler of a model, whose answers a grammar makes."""

        def __init__(self, served: ServedModel) -> None:
            self._served = served

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self._served.scheduler, attribute)

        def submit(self, request: Any, *callbacks: Any) -> Any:
            text = self._served.prompts.tokenizer.decode(request.prompt)
            thought = "Hm.\n</think>\n" if text.endswith("<think>") else ""
            said = json.dumps(thought + answer(text.count("<tool>")))
            grammar = self._served.grammar(lark=f"start: {said}")
            handle = self._served.scheduler.submit(replace(request, grammar=grammar), *callbacks)
            requests.append((handle, text[-1000:]))
            return handle

    def scripted(served: ServedModel) -> ServedModel:
        return replace(served, scheduler=Scripted(served))

    with RunningServer(model.path, context=1 << 16, threads=2, change=scripted) as server:
        arguments, environment = {"codex": codex, "claude": claude}[name](server.url, folder)
        ended = subprocess.run(
            [binary, *arguments],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": str(folder), "IS_SANDBOX": "1", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return {
            "code": ended.returncode,
            "out": ended.stdout,
            "err": ended.stderr,
            "requests": [
                {"prompt": len(handle.prompt), "reused": handle.reused_tokens, "end": end}
                for handle, end in requests
            ],
        }


if __name__ == "__main__":
    try:
        only_loopback()
    except OSError as error:
        print(json.dumps({"cannot": str(error)}))
    else:
        print(json.dumps(run(sys.argv[1], Path(sys.argv[2]))))
