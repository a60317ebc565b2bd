"""airllm chat: a conversation, message by message."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from airllm.cli import answer_options, console, model, options, values
from airllm.cli.chat_commands import Commands
from airllm.cli.conversation import Conversation, Terminated, show, terminable
from airllm.cli.history import History, history_path
from airllm.cli.typed import Message, piped_messages, typed_messages
from airllm.engine.settings import ContextFullError


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "chat",
        run,
        help="talk with a model",
        description="Holds a conversation with a model. Each line that you type is a message, and "
        "so is a text that you paste, however many lines it has; a backslash at the end of a line "
        'and """ around several lines make one message of them, too. The model remembers the '
        "conversation. Ctrl-C stops an answer, Ctrl-D or /bye ends the program, and /? lists the "
        "other commands. Messages may come from a pipe.",
        examples=[
            "airllm chat -m smollm2-135m",
            'airllm chat -m model.gguf --system "Answer in one sentence." --temperature 0',
            "airllm chat -m smollm2-135m --session ada.session   the same on another day",
            "airllm chat -m model.gguf < questions.txt > answers.txt",
        ],
    )
    options.add_model(parser)
    add_conversation(parser)
    options.add_template(parser)
    options.add_think(parser)
    answer_options.add_answer(parser, max_tokens=1024)
    options.add_lookahead(parser)
    options.add_threads(parser)
    options.add_engine(parser)
    options.add_output(parser)


def add_conversation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--system",
        type=values.text,
        metavar="S",
        help="the system message, which says who the model is and how it should answer",
    )
    parser.add_argument(
        "--session",
        type=Path,
        metavar="FILE",
        help="continue the conversation in FILE if it exists, and write the conversation to FILE "
        "after each answer; a session file belongs to one model",
    )
    parser.add_argument(
        "--no-history",
        action="store_true",
        help="do not keep your messages for the arrow keys of later sittings (nor with an empty "
        "AIRLLM_HISTORY)",
    )


def run(args: argparse.Namespace) -> int:
    try:
        with terminable(), model.open_with_draft(args) as (engine, draft):
            conversation = Conversation(engine, args, draft)
            with _saved_to(args.session, conversation):
                _talk(conversation, args)
    except Terminated as end:
        console.show("\n")
        console.note(str(end))
        return end.status
    return 0


def _talk(conversation: Conversation, args: argparse.Namespace) -> None:
    interactive = sys.stdin.isatty()
    commands = Commands(conversation, args.model, args.session)
    if interactive:
        show(conversation)
        console.log.info("a line is a message; /? lists what else there is")
    for typed in _messages(args, interactive):
        message = typed.text
        if not typed.quoted and commands.take(message):
            if commands.ended:
                return
            continue
        try:
            conversation.ask(message)
        except ContextFullError as full:
            if not interactive:
                raise
            console.note(str(full))
        if args.session is not None:
            try:
                conversation.save(args.session)
            except OSError as error:
                if not interactive:
                    raise
                console.note(f"the session could not be saved: {error}")


def _messages(args: argparse.Namespace, interactive: bool) -> Iterator[Message]:
    if interactive:
        return typed_messages(History(None if args.no_history else history_path()))
    return piped_messages()


@contextlib.contextmanager
def _saved_to(path: Path | None, conversation: Conversation) -> Iterator[None]:
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
