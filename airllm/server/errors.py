"""What a client is told when its request fails; each protocol writes it in its own shape."""

from dataclasses import dataclass

from airllm.engine.requests import DeadlineError, QueueFullError
from airllm.engine.settings import ContextFullError, PromptTooLongError
from airllm.server.mailbox import SlowReaderError
from airllm.server.model_errors import (
    LoadError,
    ModelBusyError,
    UnknownModelError,
    UnnamedModelError,
)
from airllm.text.chat_template import ChatTemplateError
from airllm.util.errors import AirllmError
from airllm.util.printable import printable_lines

__all__ = ["UNEXPECTED", "ApiError", "as_api_error", "bad", "too_long", "unsupported"]

UNEXPECTED = "internal"  # the code of an error that should not have come
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    501: "not_supported_error",
    503: "overloaded_error",
    504: "timeout_error",
}


@dataclass(eq=False)
class ApiError(AirllmError):
    """status: of HTTP. param: the request's field at fault. code: a word for programs.
    retry_after: in seconds."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None

    def __post_init__(self) -> None:
        super().__init__(self.message)
        self.message = printable_lines(self.message)

    @property
    def kind(self) -> str:
        if self.status in _KINDS:
            return _KINDS[self.status]
        return "server_error" if self.status >= 500 else "invalid_request_error"


def bad(param: str, message: str, code: str | None = None) -> ApiError:
    """The error for a field with a wrong value."""
    return ApiError(400, message, param, code)


def unsupported(param: str, why: str) -> ApiError:
    """The error for a field that has a meaning, which this server does not know to give it."""
    return ApiError(400, f"{param} is not supported: {why}", param, "unsupported_parameter")


def too_long(n_tokens: int, context: int, most: int | None = None) -> ApiError:
    """The error for a prompt that does not fit the context; most: what the model allows. Claude
    Code knows it by its first words, and then shortens the conversation."""
    allows = "" if most is None else f"; this model allows {most}"
    text = (
        f"prompt is too long: {n_tokens} tokens > {context} maximum, of prompt and answer together."
        f" `airllm serve --context` makes that larger{allows}"
    )
    return ApiError(400, text, "messages", "context_length_exceeded")


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an exception. An unexpected one tells nothing of the inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        text = "as many requests wait as this server lets wait; try again later"
        return ApiError(429, text, code="queue_full", retry_after=5)
    if isinstance(error, DeadlineError):
        return ApiError(504, str(error), code="deadline")
    if isinstance(error, SlowReaderError):
        return ApiError(408, str(error), code="slow_reader")
    if isinstance(error, PromptTooLongError):
        return too_long(error.n_tokens, error.context, error.most)
    if isinstance(error, UnknownModelError):
        return ApiError(404, str(error), "model", "model_not_found")
    if isinstance(error, UnnamedModelError):
        return ApiError(400, str(error), "model", "model_missing")
    if isinstance(error, LoadError):
        return ApiError(500, str(error), "model", "model_not_loaded")
    if isinstance(error, ModelBusyError):
        return ApiError(503, str(error), "model", "model_busy", retry_after=5)
    if isinstance(error, ContextFullError):
        return ApiError(400, str(error), "messages", "context_length_exceeded")
    if isinstance(error, ChatTemplateError):
        return ApiError(400, str(error), "messages", "chat_template")
    if isinstance(error, RecursionError):
        return ApiError(400, "the body is nested too deeply", code="nesting")
    if isinstance(error, MemoryError):
        text = "the server has no memory for this request now; try again later"
        return ApiError(503, text, code="out_of_memory", retry_after=5)
    return ApiError(500, "the server failed on this request; its log says more", code=UNEXPECTED)
