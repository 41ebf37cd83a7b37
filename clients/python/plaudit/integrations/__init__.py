"""Helpers for other libraries. Each module needs the library that it is named after, and nothing here imports one."""
