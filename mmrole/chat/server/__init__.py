"""The HTTP server: OpenAI's chat API in front of whatever answers."""
