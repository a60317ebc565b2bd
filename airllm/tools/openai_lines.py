"""Lines of OpenAI's batch files: what a request asks for, and the result of one.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
     "body": {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}}

A result has the same custom_id. Its id says which answer it is, as our own lines do in fields of
their own: "batch_req_0-5a...-c0..." has the index, the prompt's hash and the run's hash.
"""

import re
from collections.abc import Mapping
from typing import Any

from airllm.util.shown import shown

__all__ = ["CHAT", "TEXT", "body_of", "claims", "is_request", "known_fields", "result"]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

# Names of a body that are settings here, too, under other names.
_RENAMED = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
# These do not change an answer.
_IGNORED = ("model", "user", "metadata", "store", "service_tier", "safety_identifier")
# These ask for something that is not done here, unless they have one of these values.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "top_logprobs": (),
    "echo": (False,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto",),
    "parallel_tool_calls": (True,),
}
_ID = re.compile(r"batch_req_(\d{1,12})-([0-9a-f]{32})-([0-9a-f]{32})")


def is_request(entry: Mapping[str, Any]) -> bool:
    return "custom_id" in entry or "body" in entry


def body_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The request as a line of airllm's own: messages or prompt, settings, tools and id. ValueError
    says what cannot be done."""
    unknown = entry.keys() - {"custom_id", "method", "url", "body"}
    if unknown:
        raise ValueError(f"has {shown(min(unknown))}; known are custom_id, method, url, body")
    custom_id, url, body = (entry.get(name) for name in ("custom_id", "url", "body"))
    if not isinstance(custom_id, str):
        raise ValueError(f"custom_id is {shown(custom_id)}; expected a string")
    if entry.get("method") != "POST":
        raise ValueError(f"method is {shown(entry.get('method'))}; expected 'POST'")
    if url not in (CHAT, TEXT):
        raise ValueError(f"url is {shown(url)}; expected {CHAT!r} or {TEXT!r}")
    if not isinstance(body, dict):
        raise ValueError(f"body is {shown(body)}; expected an object")
    wanted, other = ("messages", "prompt") if url == CHAT else ("prompt", "messages")
    if wanted not in body or other in body:
        raise ValueError(f"the body of a request to {url} has {wanted!r}, and no {other!r}")
    found: dict[str, Any] = {"id": custom_id}
    for name, value in body.items():
        if value is None:  # as if it were not there
            continue
        if name in _REFUSED:
            if not any(value == allowed for allowed in _REFUSED[name]):
                raise ValueError(f"{name} is {shown(value)}, which is not supported")
        elif name in _RENAMED:
            if found.setdefault(_RENAMED[name], value) != value:
                raise ValueError("has two different limits of tokens")
        elif name not in _IGNORED:
            found[name] = value
    if (effort := found.pop("reasoning_effort", None)) is not None:
        variables = found.setdefault("chat_template_kwargs", {})
        if isinstance(variables, dict):
            found["chat_template_kwargs"] = {"reasoning_effort": effort, **variables}
    return found


def known_fields(custom_id: str, index: int, prompt: str, run: str) -> dict[str, object]:
    """The first fields of a result, which are known before the answer is. prompt, run: hashes."""
    return {"id": f"batch_req_{index}-{prompt}-{run}", "custom_id": custom_id}


def claims(entry: Mapping[str, Any]) -> dict[str, Any]:
    """index, prompt_sha256 and run_sha256 of a result; none of them if it has no id of ours."""
    id = entry.get("id")
    found = _ID.fullmatch(id) if isinstance(id, str) and "custom_id" in entry else None
    if found is None:
        return {}
    return {"index": int(found[1]), "prompt_sha256": found[2], "run_sha256": found[3]}


def result(url: str, model: str, answer: Mapping[str, Any], created: int) -> dict[str, object]:
    """The last fields of a result. answer: text, thought and tool_calls if there are some,
    finish_reason, prompt_tokens and tokens; or error. created: seconds since the epoch."""
    if "error" in answer:
        fault = {
            "message": answer["error"],
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
        return {"response": {"status_code": 400, "body": {"error": fault}}, "error": None}
    # OpenAI has no word for a full context.
    reason = "stop" if answer["finish_reason"] == "stop" else "length"
    choice: dict[str, object] = {"index": 0, "finish_reason": reason, "logprobs": None}
    if url == CHAT:
        message = {"role": "assistant", "content": answer["text"]}
        if "thought" in answer:
            message["reasoning_content"] = answer["thought"]
        if "tool_calls" in answer:
            message |= {"content": answer["text"] or None, "tool_calls": answer["tool_calls"]}
            choice["finish_reason"] = "tool_calls" if reason == "stop" else reason
        choice["message"] = message
    else:
        choice["text"] = answer["text"]
    usage = {"prompt_tokens": answer["prompt_tokens"], "completion_tokens": answer["tokens"]}
    body = {
        "object": "chat.completion" if url == CHAT else "text_completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }
    return {"response": {"status_code": 200, "body": body}, "error": None}
