"""Chooses the inner loops: viper where the chip has it, plain Python elsewhere. The results are the same."""

from . import loops_plain

try:
    from .loops_viper import moments, scan
except (ImportError, SyntaxError):
    from .loops_plain import moments, scan

__all__ = ["loops_plain", "moments", "scan"]
