"""Verger: the office's own OpenAI endpoint, gpt-oss on a Mac's unified memory."""

__version__ = "0.1.0"
