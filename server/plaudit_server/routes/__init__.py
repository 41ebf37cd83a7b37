"""HTTP endpoints, a file a subject; each is a few lines over the domain, the store and the engine."""
