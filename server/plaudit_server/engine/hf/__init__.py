"""The transformers engine's worker: one Hugging Face model behind the part of vLLM's HTTP interface that we use.

Started as a child like vLLM (`python -m plaudit_server.engine.hf`), so that whatever proves, restarts, routes and
retires on vLLM does so here too. The server itself never imports this package: torch stays out of its process.
"""
