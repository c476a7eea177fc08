"""Serving: the chat in the terminal, the OpenAI-compatible server, and the page it serves."""
