"""A model that is being served: what the server needs to know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from airllm.engine.requests import AfterEvents, Handle, OnEvent, Request
from airllm.engine.settings import Sampling
from airllm.server.chat_roles import Roles, roles_of
from airllm.text.answer import AnswerFormat
from airllm.text.chat_template import ChatTemplate
from airllm.text.prompts import PromptReader

if TYPE_CHECKING:
    from typing import Protocol

    from airllm.engine.grammar import Grammar

    class Engine(Protocol):
        """The part of a Scheduler that is for any thread."""

        @property
        def n_waiting(self) -> int: ...
        @property
        def n_running(self) -> int: ...
        @property
        def cached_bytes(self) -> int: ...
        def submit(
            self, request: Request, on_event: OnEvent, after_events: AfterEvents | None = None
        ) -> Handle: ...
        def cancel(self, handle: Handle) -> bool: ...
        def serve_forever(self) -> None: ...
        def close(self, *, drain: bool = False) -> None: ...


__all__ = ["ServedModel"]


@dataclass(frozen=True)
class ServedModel:
    """name: that clients see. scheduler: which `close` closes with the model. prompts: reads texts
    and chats. context: tokens of a prompt and its answer. grammar: makes one, see
    LayerWiseInferenceEngine.grammar. sampling: what the model's file asks for. facts: what /props
    shows of the model, such as its family and the plan of its memory. measured: what it shows of
    its use.
    """

    name: str
    scheduler: "Engine"
    prompts: PromptReader
    context: int
    close: Callable[[], None]
    grammar: "Callable[..., Grammar]"
    sampling: Sampling = field(default_factory=Sampling)
    facts: Mapping[str, Any] = field(default_factory=dict)
    measured: Callable[[], Mapping[str, Any]] = dict

    @cached_property
    def template(self) -> ChatTemplate:
        """FormatError, a ValueError, if the model has none."""
        return self.prompts.chat_template

    @cached_property
    def template_source(self) -> str | None:
        try:
            return self.template.source
        except ValueError:
            return None

    @cached_property
    def roles(self) -> Roles:
        """Which orders of roles the template keeps."""
        return roles_of(self.template.render)

    @property
    def shown(self) -> frozenset[int]:
        """The control tokens that the format's reader must see."""
        return self.prompts.answer_marks

    @cached_property
    def lark_grammar(self) -> "Callable[[str], Grammar]":
        """Makes a grammar, or finds the one that it made of the same text: an agent sends the same
        tools with each request, and 30 tools take 10 to 20 ms."""
        return lru_cache(maxsize=64)(lambda text: self.grammar(lark=text))

    @property
    def format(self) -> AnswerFormat:
        """How it writes answers. A model without a chat template writes plain text."""
        return self.prompts.answer_format
