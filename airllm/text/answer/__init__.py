"""What a model's answer is made of: thinking, text and tool calls, in the format of its family.

`format_of` tells the format from the model's chat template, and `AnswerParser` takes an answer
apart while it comes. Knows `util`; it sees text, and neither tokens nor sockets.
"""

from airllm.text.answer.formats import AnswerFormat, format_of
from airllm.text.answer.parser import AnswerParser
from airllm.text.answer.parts import (
    AnswerPart,
    AnswerText,
    AnswerThought,
    CallArguments,
    CallBegin,
    Tool,
    ToolCall,
)

__all__ = [
    "AnswerFormat",
    "AnswerParser",
    "AnswerPart",
    "AnswerText",
    "AnswerThought",
    "CallArguments",
    "CallBegin",
    "Tool",
    "ToolCall",
    "format_of",
]
