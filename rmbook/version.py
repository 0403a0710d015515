"""The version of rmbook, for files that say which version wrote them."""

__version__ = "0.1.0"
