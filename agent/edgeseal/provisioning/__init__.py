"""The manufacturing line's dialogue between a station and a device (docs/spec/provisioning.md)."""
