"""A conversation: the messages so far, and the model that answers them."""

import argparse
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from airllm.cli import answer_options, console, model, options
from airllm.cli.answer import Answer, parser_for, shows_thoughts
from airllm.engine.settings import AnswerOptions, ContextFullError
from airllm.text.answer.told_thoughts import with_thought

if TYPE_CHECKING:
    from types import FrameType

    from airllm.cli.engine import Engine
    from airllm.text.prompts import Prompt

__all__ = ["Conversation", "Terminated", "show", "terminable"]

# Of a conversation that goes on, the messages that are shown.
SHOWN_MESSAGES = 20


class Terminated(BaseException):
    """The process was told to end. It passes through what catches exceptions, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.status = 128 + number


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside the `with`, SIGTERM and SIGHUP (the terminal has gone) raise Terminated, so that what
    is being done can be saved."""

    def end(number: int, frame: "FrameType | None") -> None:
        handled.set()
        for each in before:  # a second one must not interrupt the saving
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread handle signals
        return
    names = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in signals}
    handled = threading.Event()
    with _sent_again(signals, handled):
        for number in signals:
            if before[number] is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, end)
        try:
            yield
        finally:
            for number, handler in before.items():
                if handler is not None:  # None: it was not set by Python
                    signal.signal(number, handler)


@contextlib.contextmanager
def _sent_again(signals: Sequence[int], handled: threading.Event) -> Iterator[None]:
    """Inside the `with`, a signal that comes just before the main thread waits for a line is sent
    again until it is handled. Python would handle it after the next key: its input() looks for
    signals only when one interrupts the wait."""
    if sys.platform == "win32":
        yield
        return
    main = threading.get_ident()
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def watch() -> None:
        while numbers := receiver.recv(1):
            number = numbers[0]
            while number in signals and not handled.wait(0.05):
                signal.pthread_kill(main, number)

    earlier = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        handled.set()
        signal.set_wakeup_fd(earlier)
        sender.close()
        watcher.join()
        receiver.close()


class Conversation:
    """The messages so far, with "role" and "content", as chat templates take them, and
    "reasoning_content" for what the model thought before an answer. think: one of options.THINK;
    None for the default of the terminal."""

    def __init__(
        self,
        engine: "Engine",
        args: argparse.Namespace,
        draft: "Engine | None" = None,
    ) -> None:
        self.engine, self._draft = engine, draft
        # A model without a template is refused now, not after the first message.
        self._template = engine.chat_template.source
        self._system: str | None = args.system
        self._variables = args.chat_template_kwargs
        self.options = answer_options.answer_options(args)
        self.think: str | None = args.think
        self._lookahead = args.lookahead
        self.reset()

    def reset(self) -> None:
        self.engine.reset()
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})

    def load(self, path: Path) -> None:
        """Continues the conversation in a file, which has its own system message."""
        messages = self.engine.load_session(path)
        if not messages:
            return
        console.log.info("going on with the conversation of %d messages in %s", len(messages), path)
        first = messages[0]
        system = first["content"] if first.get("role") == "system" else None
        if self._system not in (None, system):
            console.note(
                f"--system changes nothing: the conversation in {path} goes on as it began"
            )
        self.messages, self._system = messages, system

    @property
    def system(self) -> str | None:
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        """The conversation goes on with another system message, or with none."""
        rest = self.messages[1:] if self._system is not None else self.messages
        first = [] if text is None else [{"role": "system", "content": text}]
        self.messages, self._system = [*first, *rest], text

    @property
    def _shifts(self) -> bool:
        return self.options.get("on_full") == "shift"

    def save(self, path: Path) -> None:
        self.engine.save_session(path, messages=self.messages)

    def ask(self, message: str) -> None:
        """Streams the answer to stdout. Keeps message and answer, or neither without an answer.

        Ctrl-C and Terminated end the answer and keep its text so far. ContextFullError if no answer
        fits.
        """
        asked = [*self.messages, {"role": "user", "content": message}]
        answer: Answer | None = None
        try:
            asked, tokens = self._with_room(asked)
            request = self._request(asked)
            wanted: AnswerOptions = {**self.options, "keep": self._kept()}
            most = wanted["max_new_tokens"]
            answer = Answer(
                parser_for(self.engine, tokens),
                thoughts=shows_thoughts(self.think),
                waits=self.engine.stream_stats() is not None,
            )
            with answer, model.evaluation_progress(self.engine, most) as progress:
                generation = self.engine.generate(
                    request,
                    markup=True,
                    on_token=progress.before(answer.show),
                    on_progress=progress.update,
                    lookahead=self._lookahead,
                    draft=self._draft,
                    **wanted,
                )
            reason: str = generation.finish_reason
            if generation.shifted_tokens:
                console.log.info("the oldest %d tokens were forgotten", generation.shifted_tokens)
            console.log.debug(
                "%d of the prompt's %d tokens were known",
                generation.reused_tokens,
                generation.prompt_tokens,
            )
        except KeyboardInterrupt:
            reason = "interrupted"
        except Terminated:
            self._keep(asked, answer)
            raise
        kept = self._keep(asked, answer)
        if reason == "interrupted":
            console.log.info("stopped" if kept else "stopped; the question is forgotten")
        elif reason == "length":
            console.log.info("stopped at the longest answer that --max-tokens allows")
        elif reason == "context":
            console.note(f"stopped: {self._how_to_go_on()}")

    def _keep(self, asked: list[dict[str, str]], answer: Answer | None) -> bool:
        """Whether there is an answer, or at least a thought, to go on from."""
        if answer is None or not (answer.text or answer.thought):
            return False
        said = {"role": "assistant", "content": answer.text}
        if answer.thought:
            said["reasoning_content"] = answer.thought
        self.messages = [*asked, said]
        return True

    def _request(self, messages: list[dict[str, str]]) -> "Prompt":
        variables = options.template_variables(self._variables, self.think)
        return model.request([with_thought(each, self._template) for each in messages], variables)

    def _with_room(self, messages: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[int]]:
        """The messages and their tokens, if an answer fits. Otherwise, with --on-full shift, the
        messages without the oldest exchanges, of which it drops as many as free half of the
        context."""
        context = self.engine.context
        tokens = self.engine.tokenize(self._request(messages))
        if len(tokens) < context:
            return messages, tokens
        left, first = list(messages), int(self._system is not None)
        while self._shifts and len(tokens) > context // 2 and len(left) > first + 1:
            del left[first : first + 2]  # a question and its answer
            tokens = self.engine.tokenize(self._request(left))
        if len(tokens) >= context:
            raise ContextFullError(
                f"the conversation has {len(tokens)} tokens with this message; "
                f"{self._how_to_go_on()}"
            )
        console.log.info("the oldest %d messages are forgotten", len(messages) - len(left))
        return left, tokens

    def _kept(self) -> int:
        """The number of tokens with which every conversation with this system message begins. An
        answer longer than the context does not forget them."""
        if not self._shifts:
            return 0
        first, second = (
            self.engine.tokenize(self._request(model.conversation(text, self._system)))
            for text in ("a", "b")
        )
        pairs = enumerate(zip(first, second, strict=False))
        return next((at for at, (one, other) in pairs if one != other), 0)

    def _how_to_go_on(self) -> str:
        context, largest = self.engine.context, self.engine.config.context_length
        more = f"; airllm chat --context {min(2 * context, largest)} gives more room"
        return (
            f"the context of {context} tokens is full. /reset starts a new conversation"
            f"{'' if self._shifts else '; --on-full shift forgets its oldest messages'}"
            f"{more if context < largest else ''}"
        )


def show(conversation: Conversation) -> None:
    """Shows the conversation so far, if there is one, on the terminal."""
    said = [each for each in conversation.messages if each.get("role") != "system"]
    if len(said) > SHOWN_MESSAGES:
        console.show(f"... {len(said) - SHOWN_MESSAGES} earlier messages\n")
    for each in said[-SHOWN_MESSAGES:]:
        console.show(("> " if each.get("role") == "user" else "") + each["content"] + "\n")
