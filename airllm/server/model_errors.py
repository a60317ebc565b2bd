"""Why a request does not get the model that it asks for."""

from collections.abc import Sequence

from airllm.util.errors import AirllmError

__all__ = [
    "LoadError",
    "ModelBusyError",
    "UnknownModelError",
    "UnnamedModelError",
    "models_in_words",
]

MOST_NAMED = 20  # of the models in an error


class UnknownModelError(AirllmError):
    """No model of that name is here."""

    def __init__(self, name: str, ids: Sequence[str]) -> None:
        super().__init__(f"there is no model {name[:200]!r} here; {models_in_words(ids)}")


class UnnamedModelError(AirllmError):
    """A request names no model, there are several, and none is the default."""

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(f"the request names no model; {models_in_words(ids)}")


class LoadError(AirllmError):
    """A model cannot be loaded."""


class ModelBusyError(AirllmError):
    """A model could not be loaded in time, because others have the memory."""


def models_in_words(ids: Sequence[str]) -> str:
    """Which models there are, for an error."""
    if not ids:
        return "there are none"
    more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
    return f"there are: {', '.join(ids[:MOST_NAMED])}{more}"
