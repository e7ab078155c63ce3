"""Servers that speak OpenAI's chat API, as a backend."""
