"""The Plaudit trainer: a sidecar that turns feedback into versions."""
