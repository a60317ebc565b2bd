"""Language models on ordinary CPUs: layer by layer, in the memory you grant."""

import importlib
from typing import TYPE_CHECKING, Any

from airllm.util.version import __version__

if TYPE_CHECKING:
    from airllm.engine.continuation import Generation as Generation
    from airllm.engine.settings import ContextFullError as ContextFullError
    from airllm.hub import HubError as HubError
    from airllm.layer_engine import LayerWiseInferenceEngine as LayerWiseInferenceEngine
    from airllm.text.prompts import Chat as Chat
    from airllm.util.errors import AirllmError as AirllmError
    from airllm.util.metadata import FormatError as FormatError
    from airllm.weights.budget import BudgetError as BudgetError

# Where each public name is. It is imported when it is first used, so that `import airllm` imports
# neither NumPy nor the extension.
_PLACES = {
    "AirllmError": "airllm.util.errors",
    "BudgetError": "airllm.weights.budget",
    "Chat": "airllm.text.prompts",
    "ContextFullError": "airllm.engine.settings",
    "FormatError": "airllm.util.metadata",
    "Generation": "airllm.engine.continuation",
    "HubError": "airllm.hub",
    "LayerWiseInferenceEngine": "airllm.layer_engine",
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
