"""The first hour with airllm, in a shell on a pseudo-terminal, recorded as an asciicast.

    python tests/first_hour.py [model.gguf]

The model comes from the tests' hub on loopback; without a file, it is a tiny one that talks
nonsense. `asciinema play build/first_hour.cast` shows the recording.
"""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from fake_hub import fake_hub
from streamed_model import SIZES
from tiny_model import write_tiny_model

TESTS = Path(__file__).parent
RECORDING = TESTS.parent / "build/first_hour.cast"
BEGIN, END = "\x1b[200~", "\x1b[201~"  # around pasted text
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[78DM=>])|\r")
SECONDS = 120.0
TINY_RAM = "11MB"  # less than the tiny model takes


class Shell:
    """A shell on a terminal, of which everything is recorded. seen: the text since the last wait,
    without escape sequences."""

    def __init__(
        self, recording: Path, environment: Mapping[str, str], *, columns: int = 80, rows: int = 24
    ) -> None:
        recording.parent.mkdir(parents=True, exist_ok=True)
        self._file = recording.open("w", encoding="utf-8")
        self._start = time.monotonic()
        self._raw = b""
        self.seen = ""
        header = {"version": 2, "width": columns, "height": rows, "title": "The first hour"}
        self._file.write(json.dumps(header) + "\n")
        self._pid, self._master = pty.fork()
        if self._pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], dict(environment))
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def run(self, command: str) -> None:
        self.type(command + "\n")
        self.wait_for(command)

    def wait_for(self, text: str) -> str:
        """Reads until the text is on the screen; returns what came with it."""
        until = time.monotonic() + SECONDS
        while text not in self.seen:
            left = until - time.monotonic()
            if not select.select([self._master], [], [], max(left, 0))[0]:
                raise AssertionError(f"{text!r} did not come; last: {self.seen[-2000:]!r}")
            try:
                self._take(os.read(self._master, 65536))
            except OSError:  # the shell has ended
                raise AssertionError(f"{text!r} did not come; last: {self.seen!r}") from None
        before, self.seen = self.seen.split(text, 1)
        return before + text

    def prompt(self) -> str:
        """Waits for the shell's prompt; returns what came before it."""
        return self.wait_for("\n$ ").removesuffix("\n$ ")

    def signal_of(self, number: signal.Signals) -> None:
        """Sends a signal to the program in the foreground."""
        os.killpg(os.tcgetpgrp(self._master), number)

    def _take(self, data: bytes) -> None:
        self._raw += data
        text = self._raw.decode(errors="ignore")  # the rest of a character comes later
        self._raw = self._raw[len(text.encode()) :]
        event = [round(time.monotonic() - self._start, 4), "o", text]
        self._file.write(json.dumps(event, ensure_ascii=False) + "\n")
        self.seen = _ESCAPES.sub("", self.seen + text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        os.close(self._master)
        os.waitpid(self._pid, 0)


@contextmanager
def shell_with_a_hub(
    model: Path | None = None, recording: Path = RECORDING, **size: int
) -> Iterator[Shell]:
    """A shell in an empty home, whose hub has the model as org/repo."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        content = (
            model or write_tiny_model(home, "q4_0", sizes=replace(SIZES, context=1024)).path
        ).read_bytes()
        (home / "model.gguf").write_bytes(content)
        (home / "bin").mkdir()
        command = home / "bin/airllm"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m airllm "$@"\n')
        command.chmod(0o755)
        with fake_hub({"repo-Q4_0.gguf": content}) as hub:
            environment = {
                "HOME": folder,
                "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(TESTS.parent),
                "TERM": "xterm-256color",
                "LANG": "C.UTF-8",
                "PS1": "$ ",
                "HF_ENDPOINT": hub.url,
                "AIRLLM_RAM": "",
                "BASH_SILENCE_DEPRECATION_WARNING": "1",
            }
            environment = {name: value for name, value in environment.items() if value}
            with Shell(recording, environment, **size) as shell:
                shell.wait_for("$ ")
                shell.type("cd\n")
                yield shell


def first_hour(shell: Shell, ram: str) -> None:
    """ram: a budget that is smaller than the model."""
    shell.wait_for("$ ")
    shell.run("airllm list")
    assert "airllm pull" in shell.prompt()

    shell.run("airllm run mistral 'Hello'")
    assert "mistral: no such file, and no model of that name is known" in shell.prompt()

    shell.run("airllm run -n 32 hf.co/org/repo Hello world")
    shell.wait_for("Fetch it (Q4_0,")
    shell.wait_for("[Y/n]")
    shell.type("y\n")
    assert "tokens/s" in shell.prompt()

    shell.run("airllm list")
    assert "org/repo" in shell.prompt()

    shell.run("airllm run org/repo -n 24 --session ada.session")
    shell.wait_for("/? lists what else there is")
    shell.wait_for("> ")
    shell.type("/?\n")
    assert "/set NAME VALUE" in shell.wait_for("\n> ")
    shell.type("/set temperature 0\n")
    shell.wait_for("temperature is 0.0")
    shell.wait_for("\n> ")
    shell.type("hello\n")
    shell.wait_for("\n> ")
    shell.type(f"Explain: {BEGIN}def hello():\n    return 'world'{END}\n")
    shell.wait_for("\n> ")
    shell.type("/show\n")
    assert "tokens are used" in shell.wait_for("\n> ")
    shell.signal_of(signal.SIGTERM)
    assert "ended by SIGTERM" in shell.prompt()

    shell.run("airllm run org/repo -n 24 --session ada.session")
    again = shell.wait_for("/? lists what else there is")
    assert "going on with the conversation of 4 messages in ada.session" in again
    assert "> hello" in again
    shell.wait_for("> ")
    shell.type("/bye\n")
    shell.prompt()

    shell.run(f"airllm plan -m org/repo --ram {ram}")
    assert "streamed" in shell.prompt()
    shell.run(f"airllm generate -m org/repo --ram {ram} -n 12 hello")
    assert "streamed" in shell.prompt()

    shell.run("airllm rm org/repo")
    shell.prompt()
    shell.type("exit\n")


def main() -> int:
    model = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with shell_with_a_hub(model) as shell:
        first_hour(shell, TINY_RAM if model is None else "80MB")
    print(RECORDING)
    return 0


if __name__ == "__main__":
    sys.exit(main())
