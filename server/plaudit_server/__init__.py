"""The Plaudit server: an OpenAI-compatible API in front of vLLM that remembers what it said and how it was received."""
