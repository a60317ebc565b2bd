"""airllm chat: a conversation, line by line."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from airllm.cli import console, model, options
from airllm.engine.settings import AnswerOptions, ContextFullError

if TYPE_CHECKING:
    from airllm.cli.engine import Engine

HELP = """\
/reset  forget the conversation and start a new one
/help   show this list
/exit   end the program (Ctrl-D does, too)
Ctrl-C stops an answer; the part that was written stays in the conversation."""


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "chat",
        run,
        help="talk with a model",
        description="Holds a conversation with a model. Each line that you type is a message, "
        "and the model remembers the conversation. Ctrl-C stops an answer, Ctrl-D or /exit ends "
        "the program, and /help lists the other commands. Lines may come from a pipe.",
        examples=[
            "airllm chat -m smollm2-135m",
            'airllm chat -m model.gguf --system "Answer in one sentence." --temperature 0',
            "airllm chat -m smollm2-135m --session ada.session   the same on another day",
            "airllm chat -m model.gguf < questions.txt > answers.txt",
        ],
    )
    options.add_model(parser)
    parser.add_argument(
        "--system",
        type=options.text,
        metavar="S",
        help="the system message, which says who the model is and how it should answer",
    )
    parser.add_argument(
        "--session",
        type=Path,
        metavar="FILE",
        help="continue the conversation in FILE if it exists, and write the conversation to "
        "FILE at the end; a session file belongs to one model",
    )
    options.add_template(parser)
    options.add_answer(parser, max_tokens=1024)
    options.add_lookahead(parser)
    options.add_threads(parser)
    options.add_engine(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    interactive = sys.stdin.isatty()
    with model.open_with_draft(args) as (engine, draft):
        conversation = Conversation(engine, args, draft)
        if interactive:
            console.log.info("a line is a message; /help lists what else there is")
        with _saved_to(args.session, conversation):
            for line in _typed_lines() if interactive else sys.stdin:
                message = line.strip()
                if message == "/exit":
                    break
                if message == "/reset":
                    conversation.reset()
                    console.log.info("a new conversation")
                elif message == "/help":
                    print(HELP)
                elif message.startswith("/") and len(message.split()) == 1:
                    console.note(f"there is no {message}; /help lists what there is")
                elif message:
                    try:
                        conversation.ask(message)
                    except ContextFullError as full:
                        if not interactive:
                            raise
                        console.note(str(full))
    return 0


@contextlib.contextmanager
def _saved_to(path: Path | None, conversation: "Conversation") -> Iterator[None]:
    """Loads the conversation from `path`, if that exists, and saves it there at any end."""
    if path is None:
        yield
        return
    if path.exists():
        conversation.load(path)
    else:
        conversation.save(path)  # so that an error comes now, not after the last message
    try:
        yield
    finally:
        conversation.save(path)


class Conversation:
    """The messages so far, with "role" and "content", as chat templates take them."""

    def __init__(
        self,
        engine: "Engine",
        args: argparse.Namespace,
        draft: "Engine | None" = None,
    ) -> None:
        self._engine, self._draft = engine, draft
        _ = engine.chat_template  # a model without one is refused now, not after the first message
        self._system = args.system
        self._variables = args.chat_template_kwargs
        self._options = options.answer_options(args)
        self._shifts = args.on_full == "shift"
        self._lookahead = args.lookahead
        self.reset()

    def reset(self) -> None:
        self._engine.reset()
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})

    def load(self, path: Path) -> None:
        """Continues the conversation in a file, which has its own system message."""
        messages = self._engine.load_session(path)
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

    def save(self, path: Path) -> None:
        self._engine.save_session(path, messages=self.messages)

    def ask(self, message: str) -> None:
        """Streams the answer to stdout. Keeps message and answer, or neither without an answer.

        Ctrl-C ends the answer and keeps its text so far. ContextFullError if no answer fits.
        """
        asked = [*self.messages, {"role": "user", "content": message}]
        answer = console.Answer()
        try:
            asked = self._with_room(asked)
            wanted: AnswerOptions = {**self._options, "keep": self._kept()}
            most = wanted["max_new_tokens"]
            with answer, model.evaluation_progress(self._engine, most) as progress:
                generation = self._engine.generate(
                    model.request(asked, self._variables),
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
        if answer.text:
            self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        if reason == "interrupted":
            console.log.info("stopped" if answer.text else "stopped; the question is forgotten")
        elif reason == "length":
            console.log.info("stopped at the longest answer that --max-tokens allows")
        elif reason == "context":
            console.note(f"stopped: {self._how_to_go_on()}")

    def _with_room(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """The messages, if an answer fits. Otherwise, with --on-full shift, the messages without
        the oldest exchanges, of which it drops as many as free half of the context."""
        context = self._engine.context
        used = self._n_tokens(messages)
        if used < context:
            return messages
        left, first = list(messages), int(self._system is not None)
        while self._shifts and used > context // 2 and len(left) > first + 1:
            del left[first : first + 2]  # a question and its answer
            used = self._n_tokens(left)
        if used >= context:
            raise ContextFullError(
                f"the conversation has {used} tokens with this message; {self._how_to_go_on()}"
            )
        console.log.info("the oldest %d messages are forgotten", len(messages) - len(left))
        return left

    def _n_tokens(self, messages: list[dict[str, str]]) -> int:
        return len(self._engine.tokenize(model.request(messages, self._variables)))

    def _kept(self) -> int:
        """The number of tokens with which every conversation with this system message begins. An
        answer longer than the context does not forget them."""
        if not self._shifts:
            return 0
        first, second = (
            self._engine.tokenize(
                model.request(model.conversation(text, self._system), self._variables)
            )
            for text in ("a", "b")
        )
        pairs = enumerate(zip(first, second, strict=False))
        return next((at for at, (one, other) in pairs if one != other), 0)

    def _how_to_go_on(self) -> str:
        context, largest = self._engine.context, self._engine.config.context_length
        more = f"; airllm chat --context {min(2 * context, largest)} gives more room"
        return (
            f"the context of {context} tokens is full. /reset starts a new conversation"
            f"{'' if self._shifts else '; --on-full shift forgets its oldest messages'}"
            f"{more if context < largest else ''}"
        )


def _typed_lines() -> Iterator[str]:
    """Lines typed at a prompt until Ctrl-D. Ctrl-C drops the line, but not the conversation."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() then edits lines and remembers them)
    while True:
        try:
            yield _prompt("> ")
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            console.note("Ctrl-D or /exit ends")


def _prompt(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    # If stdout is a file, input() would write the prompt among the answers.
    print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
