"""airllm chat: a conversation, line by line."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from airllm.cli import console, model, options

if TYPE_CHECKING:
    from airllm.layer_engine import LayerWiseInferenceEngine

HELP = """\
/reset  forget the conversation and start a new one
/help   this list
/exit   end (Ctrl-D does too)
Ctrl-C stops an answer; what was said of it stays in the conversation."""


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "chat",
        run,
        help="talk with a model",
        description="A conversation with a model: a line is a message, and the model remembers "
        "what was said. Ctrl-C stops an answer, Ctrl-D or /exit ends, /help lists the rest. "
        "Lines may come from a pipe.",
        examples=[
            "airllm chat -m smollm2-135m",
            'airllm chat -m model.gguf --system "Answer in one sentence." --temperature 0',
            "airllm chat -m model.gguf < questions.txt > answers.txt",
        ],
    )
    options.add_model(parser)
    parser.add_argument(
        "--system", type=options.text, metavar="S", help="who the model is and how it should answer"
    )
    options.add_sampling(parser, max_tokens=1024)
    options.add_threads(parser)
    options.add_engine(parser)
    options.add_output(parser)


def run(args: argparse.Namespace) -> int:
    interactive = sys.stdin.isatty()
    with model.open_engine(args, context=args.context, threads=args.threads) as engine:
        conversation = Conversation(engine, args)
        if interactive:
            console.log.info("a line is a message; /help lists what else there is")
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


class ContextFullError(ValueError):
    """The conversation and its next message are longer than the context."""


class Conversation:
    """What was said so far: messages with "role" and "content", as chat templates take them."""

    def __init__(self, engine: "LayerWiseInferenceEngine", args: argparse.Namespace) -> None:
        self._engine = engine
        model.chat_template(engine, args.model)  # refused here, by its name
        self._system = args.system
        self._sampling = options.sampling(args)
        self.reset()

    def reset(self) -> None:
        self._engine.reset()
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})

    def ask(self, message: str) -> None:
        """Streams the answer to stdout; keeps both, or neither where there was no answer.

        Ctrl-C ends the answer and keeps what was said of it. ContextFullError where none fits.
        """
        asked = [*self.messages, {"role": "user", "content": message}]
        answer = console.Answer()
        try:
            self._check_room(asked)
            with answer, console.prompt_progress() as progress:
                generation = self._engine.generate(
                    asked, on_token=answer.show, on_progress=progress.update, **self._sampling
                )
            reason: str = generation.finish_reason
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

    def _check_room(self, messages: list[dict[str, str]]) -> None:
        used = len(self._engine.tokenize(messages))
        if used >= self._engine.context:
            raise ContextFullError(
                f"the conversation has {used} tokens with this message; {self._how_to_go_on()}"
            )

    def _how_to_go_on(self) -> str:
        context, largest = self._engine.context, self._engine.config.context_length
        more = f"; airllm chat --context {min(2 * context, largest)} gives more room"
        return (
            f"the context of {context} tokens is full. /reset starts a new conversation"
            f"{more if context < largest else ''}"
        )


def _typed_lines() -> Iterator[str]:
    """Lines typed at a prompt until Ctrl-D. Ctrl-C drops the line, never the conversation."""
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
    # input() would put the prompt among the answers where stdout is a file.
    print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
