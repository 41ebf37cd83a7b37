"""Rules of the service as pure functions and values: no I/O, no framework."""
