"""What can be typed in a conversation beside messages: /set, /save and others."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from airllm.cli import answer_options, console, model, options
from airllm.cli.answer import shows_thoughts
from airllm.cli.conversation import Conversation, show
from airllm.engine.settings import AnswerOptions, settings_of

__all__ = ["Commands"]

HELP = """\
/?, /help           show this list
/bye, /exit         end the program (Ctrl-D does, too)
/reset, /clear      forget the conversation and start a new one
/set NAME VALUE     change a setting, for instance /set temperature 0
/set system TEXT    change the system message
/set think HOW      show or hide thoughts; off asks the model not to think
/set                show all settings
/show               show the model, the settings and how full the context is
/save FILE          write the conversation to FILE
/load FILE          go on with the conversation in FILE
\"\"\"                 begins and ends a message of several lines
\\ at a line's end    goes on with the message in the next line
Ctrl-C stops an answer; the part that was written stays in the conversation."""

_UNSHOWN = ("keep",)  # a conversation sets it itself

# A line. /etc/passwd is a message, and /help is none.
_COMMAND = re.compile(r"/(\?|[A-Za-z][A-Za-z_-]*)(?:[ \t]+(.*))?")


class Commands:
    """The commands of a conversation. ended: whether one of them has ended it."""

    def __init__(self, conversation: Conversation, model_name: str, session: Path | None) -> None:
        self._conversation, self._model, self._session = conversation, model_name, session
        self.ended = False
        self._commands: dict[str, Callable[[str], None]] = {
            "?": self._help,
            "help": self._help,
            "bye": self._end,
            "exit": self._end,
            "quit": self._end,
            "reset": self._reset,
            "clear": self._reset,
            "set": self._set,
            "show": self._show,
            "save": self._save,
            "load": self._load,
        }

    def take(self, message: str) -> bool:
        """Whether the message was a command, which is done then. Its errors are notes."""
        found = _COMMAND.fullmatch(message)
        if found is None:
            return False
        command = self._commands.get(found[1].lower())
        if command is None:
            console.note(
                f"there is no /{found[1]}; /? lists what there is. A message that begins like this "
                'can stand in """'
            )
            return True
        try:
            command((found[2] or "").strip())
        except (ValueError, TypeError, OSError) as error:
            console.note(console.described(error))
        return True

    def _help(self, _: str) -> None:
        print(HELP)

    def _end(self, _: str) -> None:
        self.ended = True

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        console.log.info("a new conversation")

    def _set(self, text: str) -> None:
        name, _, value = text.removeprefix("parameter ").strip().partition(" ")
        value = value.strip()
        if not name:
            self._show_settings()
        elif name in ("think", "nothink"):
            self._conversation.think = _think(name, value)
            console.log.info("think is %s", self._conversation.think)
        elif name == "system":
            text = value.strip('"')
            self._conversation.system = text or None
            console.log.info("the system message is %s", text or "none")
        else:
            changed = _option(name, value)
            wanted: AnswerOptions = {**self._conversation.options, **changed}
            settings_of(**wanted)
            self._conversation.options = wanted
            for option, setting in changed.items():
                console.log.info("%s is %s", _said(option), setting)

    def _show(self, _: str) -> None:
        engine = self._conversation.engine
        said = sum(each.get("role") != "system" for each in self._conversation.messages)
        _show_rows(
            {
                "model": self._model,
                "runs on": model.in_words(model.runtime(engine)),
                "context": f"{engine.position} of {engine.context} tokens are used",
                "messages": said,
                "session": self._session or "is not saved (--session, or /save FILE)",
            }
        )
        self._show_settings()

    def _show_settings(self) -> None:
        system = self._conversation.system
        chosen = settings_of(self._conversation.engine.sampling, **self._conversation.options)
        both = {name: value for kind in reversed(chosen) for name, value in vars(kind).items()}
        rows = {_said(name): value for name, value in both.items() if name not in _UNSHOWN}
        think = self._conversation.think
        own = {
            "think": think or ("show" if shows_thoughts(think) else "hide"),
            "system": "none" if system is None else system,
        }
        _show_rows({**rows, **own})

    def _save(self, text: str) -> None:
        path = _path(text) or self._session
        if path is None:
            raise ValueError("expected a file: /save FILE")
        self._conversation.save(path)
        console.log.info("the conversation is in %s", path)

    def _load(self, text: str) -> None:
        path = _path(text)
        if path is None:
            raise ValueError("expected a file: /load FILE")
        self._conversation.load(path)
        show(self._conversation)


def _think(name: str, value: str) -> str:
    """ "/set nothink" and "/set think" without more are Ollama's commands. ValueError."""
    how = "off" if name == "nothink" else value or "show"
    if how not in options.THINK:
        raise ValueError(f"think: expected one of {', '.join(options.THINK)}, not {how}")
    return how


def _option(name: str, value: str) -> AnswerOptions:
    """A setting by the name and in the form that it has on the command line; "_" may stand for
    "-". ValueError."""
    parser = _OptionParser(prog="/set", add_help=False, allow_abbrev=False)
    answer_options.add_answer(parser)
    given = name.strip("-").replace("_", "-").lower()
    known = {o.removeprefix("--"): a.dest for a in parser._actions for o in a.option_strings}
    known = {**known, "max-new-tokens": "max_new_tokens", "num-predict": "max_new_tokens"}
    if given not in known:
        names = ", ".join(name for name in known if len(name) > 2)
        raise ValueError(f"there is no setting {name}; there are: system, think, {names}")
    option = "max-tokens" if known[given] == "max_new_tokens" else given
    found = vars(parser.parse_args([f"--{option}={value}"] if value else [f"--{option}"]))
    changed: AnswerOptions = {known[given]: found[known[given]]}  # type: ignore[misc]
    return changed


class _OptionParser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ValueError(message.removeprefix("argument ").removeprefix("--"))


def _said(name: str) -> str:
    return "max_tokens" if name == "max_new_tokens" else name


def _path(text: str) -> Path | None:
    return Path(text.strip("\"'")).expanduser() if text else None


def _show_rows(rows: dict[str, object]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        console.show(f"{name:<{width}}  {'-' if value in (None, ()) else value}\n")
