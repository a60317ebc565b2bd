"""Readers of model files: bytes on disk become validated metadata and views of tensors."""
