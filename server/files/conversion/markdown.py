"""Markdown as it is written: a model reads it well, and places in it are those of the file."""

from refine_server.server.files.conversion.text import read

__all__ = ["read"]
