"""The parts of an answer, and the list in which a format's reader puts them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "AnswerPart",
    "AnswerText",
    "AnswerThought",
    "CallArguments",
    "CallBegin",
    "Parts",
    "Tool",
    "ToolCall",
]


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. parameters: a JSON schema. strict: whether a schema that
    cannot be enforced is an error."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    strict: bool = False

    def as_json(self) -> dict[str, object]:
        """As chat templates expect tools."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class AnswerText:
    """Text for the reader."""

    text: str


@dataclass(frozen=True)
class AnswerThought:
    """Text that the model wrote for itself before it answered."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """A tool call begins. index: 0 for the answer's first call. id: if the model wrote one."""

    index: int
    name: str
    id: str | None = None


@dataclass(frozen=True)
class CallArguments:
    """More of the arguments of the call `index`: a piece of a JSON text."""

    index: int
    text: str


AnswerPart = AnswerText | AnswerThought | CallBegin | CallArguments


@dataclass
class ToolCall:
    """A whole call. id: "" unless there is one. arguments: a JSON text."""

    name: str
    id: str = ""
    arguments: str = ""

    def as_json(self) -> dict[str, object]:
        """As OpenAI's messages have calls."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class Parts:
    """Collects parts, and drops the white space that markup had around it.

    Text without any markup stays as it is. Beside a thought or a call, white space is layout: it is
    dropped at both ends of a thought, after a thought, and around calls.
    """

    def __init__(self) -> None:
        self._parts: list[AnswerPart] = []
        self.n_calls = 0
        self._space = ""  # the end of the text, which is dropped if a call or a thought follows
        self._drops_space = False  # whether white space at the beginning of text is dropped
        self._thought_space: str | None = None  # the end of the thought; None before its first word

    def take(self) -> list[AnswerPart]:
        """The parts since the last `take`."""
        taken, self._parts = self._parts, []
        return taken

    def text(self, text: str) -> None:
        if self._drops_space:
            text = text.lstrip()
            self._drops_space = not text
        words = text.rstrip()
        if not words:
            self._space += text
            return
        self._add_text(self._space + words)
        self._space = text[len(words) :]

    def thought(self, text: str) -> None:
        if self._thought_space is None:
            text = text.lstrip()
        words = text.rstrip()
        if not words:
            if self._thought_space is not None:
                self._thought_space += text
            return
        words, space = (self._thought_space or "") + words, text[len(words) :]
        last = self._parts[-1] if self._parts else None
        if isinstance(last, AnswerThought):
            self._parts[-1] = AnswerThought(last.text + words)
        else:
            self._parts.append(AnswerThought(words))
        self._thought_space = space

    def end_thought(self) -> None:
        self._thought_space, self._space, self._drops_space = None, "", True

    def begin_call(self, name: str, id: str | None = None) -> None:
        self._parts.append(CallBegin(self.n_calls, name, id))
        self.n_calls += 1
        self._space, self._drops_space = "", True

    def arguments(self, text: str) -> None:
        """More arguments of the call that began last."""
        last, index = self._parts[-1] if self._parts else None, self.n_calls - 1
        if isinstance(last, CallArguments):  # of this call: CallBegin comes before others
            self._parts[-1] = CallArguments(index, last.text + text)
        elif text:
            self._parts.append(CallArguments(index, text))

    def finish(self) -> None:
        """No more comes: the white space at the end belongs to the text, unless a call was last."""
        if self._space:
            self._add_text(self._space)
        self._space = ""

    def _add_text(self, text: str) -> None:
        last = self._parts[-1] if self._parts else None
        if isinstance(last, AnswerText):
            self._parts[-1] = AnswerText(last.text + text)
        else:
            self._parts.append(AnswerText(text))
