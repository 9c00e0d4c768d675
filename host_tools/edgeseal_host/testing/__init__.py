"""In-memory far ends (fleet, device, repository) for tests of edgeseal and of what integrators build on it."""
