"""airllm chat and run on a pseudo-terminal, as a person has them: Ctrl-C, paste, the arrow keys, a
terminal that goes away."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pytest

ON_A_TERMINAL = """
import sys
sys.path.insert(0, {tests!r})
from fake_engine import FakeEngine
from airllm.cli import main, model

def endless():
    yield "Once upon a time"
    while True:  # until Ctrl-C
        pass

answers = [endless(), ["The end."], ["Again."]] if {endless} else [["one."], ["two."], ["three."]]
engine = FakeEngine(*answers)
model.open_engine = lambda args, **options: engine
status = main({argv!r})
print("asked:", [request[-1]["content"] for request in engine.requests])
sys.exit(status)
"""
# What a terminal puts around pasted text.
BEGIN, END = "\x1b[200~", "\x1b[201~"
WITHOUT_READLINE = "import sys; sys.modules['readline'] = None\n"


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(
        self,
        *argv: str,
        endless: bool = False,
        before: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        tests = Path(__file__).parent
        self.master, slave = pty.openpty()
        self.seen = ""
        program = ON_A_TERMINAL.format(tests=str(tests), endless=endless, argv=list(argv))
        self.process = subprocess.Popen(
            [sys.executable, "-c", before + program],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={
                **os.environ,
                "PYTHONPATH": str(tests.parent),
                "TERM": "xterm",
                "AIRLLM_HISTORY": "",
                "INPUTRC": os.devnull,
                **(environment or {}),
            },
            preexec_fn=_own_the_terminal,
        )
        os.close(slave)

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def wait_for(self, text: str) -> None:
        """Reads until `text` has come; what was read before it is gone."""
        while text not in self.seen:
            assert select.select([self.master], [], [], 30)[0], f"{text!r} did not come in 30 s"
            try:
                data = os.read(self.master, 4096)
            except OSError:  # Linux says EIO when the other side has closed
                data = b""
            assert data, f"{text!r} did not come; last: {self.seen!r}"
            self.seen += data.decode()
        self.seen = self.seen.split(text, 1)[1]

    def hang_up(self) -> None:
        """As when the window is closed, or the connection is lost."""
        os.close(self.master)
        self.master = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.master >= 0:
            os.close(self.master)


def _own_the_terminal() -> None:
    """Makes stdin the controlling terminal, so that ^C typed there becomes a SIGINT; which a shell
    may have told its background jobs, this one among them, to ignore."""
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


CHAT = ("chat", "--model", "m.gguf")


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    with Terminal(*CHAT, endless=True, environment={"TERM": "dumb"}) as terminal:
        terminal.wait_for("> ")
        terminal.type("Tell a story\n")
        terminal.wait_for("Once upon a time")
        terminal.type("\x03")
        terminal.wait_for("airllm: stopped")
        terminal.wait_for("> ")
        terminal.type("And now?\n")
        terminal.wait_for("The end.")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=30) == 0


@pytest.mark.parametrize("before", ["", WITHOUT_READLINE], ids=["readline", "plain"])
def test_a_pasted_text_is_one_message(before: str) -> None:
    with Terminal(*CHAT, before=before) as terminal:
        terminal.wait_for("> ")
        terminal.type(f"{BEGIN}first\nsecond\n\nfourth{END}\n")
        terminal.wait_for("one.")
        terminal.wait_for("> ")
        terminal.type("/bye\n")
        terminal.wait_for("asked: ['first\\nsecond\\n\\nfourth']")
        assert terminal.process.wait(timeout=30) == 0


def test_a_paste_may_end_in_a_newline_and_be_completed_by_hand() -> None:
    with Terminal(*CHAT) as terminal:
        terminal.wait_for("> ")
        terminal.type(f"Explain: {BEGIN}def f():\n    pass\n{END}")
        terminal.type("briefly\n")
        terminal.wait_for("one.")
        terminal.type("/bye\n")
        terminal.wait_for("asked: ['Explain: def f():\\n    pass\\nbriefly']")


def test_arrow_up_knows_earlier_sittings_and_messages_of_several_lines(tmp_path: Path) -> None:
    history = {"AIRLLM_HISTORY": str(tmp_path / "h")}
    with Terminal(*CHAT, environment=history) as terminal:
        terminal.wait_for("> ")
        terminal.type(f"{BEGIN}first\nsecond{END}\n")
        terminal.wait_for("one.")
        terminal.wait_for("> ")
        terminal.type("/bye\n")
        terminal.wait_for("asked:")
    with Terminal(*CHAT, environment=history) as terminal:
        terminal.wait_for("> ")
        terminal.type("\x1b[A\x1b[A\n")
        terminal.wait_for("one.")
        terminal.wait_for("> ")
        terminal.type("/bye\n")
        terminal.wait_for("asked: ['first\\nsecond']")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_answer_so_far(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Terminal(*CHAT, "--session", str(path), endless=True) as terminal:
        terminal.wait_for("> ")
        terminal.type("Tell a story\n")
        terminal.wait_for("Once upon a time")
        terminal.process.send_signal(number)
        assert terminal.process.wait(timeout=30) == 128 + number
    assert [each["content"] for each in json.loads(path.read_text())] == [
        "Tell a story", "Once upon a time",
    ]  # fmt: skip


def test_a_terminal_that_goes_away_while_it_waits_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Terminal(*CHAT, "--session", str(path)) as terminal:
        terminal.wait_for("> ")
        terminal.type("Hello\n")
        terminal.wait_for("one.")
        terminal.wait_for("> ")
        terminal.type("half a ques")
        terminal.hang_up()
        terminal.process.wait(timeout=30)
    assert [each["content"] for each in json.loads(path.read_text())] == ["Hello", "one."]


def test_a_killed_chat_has_the_session_of_the_last_answer(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Terminal(*CHAT, "--session", str(path)) as terminal:
        terminal.wait_for("> ")
        terminal.type("Hello\n")
        terminal.wait_for("one.")
        terminal.wait_for("> ")
        terminal.process.kill()
        terminal.process.wait(timeout=30)
    assert [each["content"] for each in json.loads(path.read_text())] == ["Hello", "one."]


def test_run_without_a_prompt_is_a_conversation() -> None:
    with Terminal("run", "m.gguf") as terminal:
        terminal.wait_for("> ")
        terminal.type("Hello\n")
        terminal.wait_for("one.")
        terminal.wait_for("> ")
        terminal.type("\x04")
        terminal.wait_for("asked: ['Hello']")
        assert terminal.process.wait(timeout=30) == 0


PULLS = """
from airllm import hub
hub.offer = lambda name: ("Q4_K_M", 1_234_000_000)
hub.find_model = lambda name: None
def pull(name, **options):
    print("pulled", name)
    raise SystemExit(0)
hub.pull = pull
from airllm.cli import main
import sys
sys.exit(main({argv!r}))
"""


@pytest.mark.parametrize(
    ("argv", "key", "ends"),
    [
        (["run", "hf.co/org/repo", "Hi"], "y\n", "pulled hf.co/org/repo"),
        (["chat", "-m", "hf.co/org/repo:Q8_0"], "\n", "pulled hf.co/org/repo:Q8_0"),
        (["generate", "-m", "smollm2-135m", "Hi"], "n\n", "has not been fetched yet"),
        (["generate", "-m", "smollm2-135m", "Hi"], "\x04", "has not been fetched yet"),
    ],
)
def test_a_named_model_that_is_not_here_is_fetched_after_a_question(
    argv: list[str], key: str, ends: str
) -> None:
    # What follows is not reached: the program has ended.
    with Terminal(before=PULLS.format(argv=argv)) as terminal:
        terminal.wait_for("is not on this machine. Fetch it (Q4_K_M, 1,234 MB)? [Y/n] ")
        terminal.type(key)
        terminal.wait_for(ends)
