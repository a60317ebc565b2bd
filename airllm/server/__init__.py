"""Serves a model over HTTP to OpenAI's, Anthropic's and Ollama's clients.

Protocols are functions from JSON to a ChatRequest and from an answer's events to JSON, without
sockets; `app` joins them to starlette. Knows `engine`, `text`, `util`, and no way to open a model.
"""
