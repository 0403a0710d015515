"""Errors of adapters: the model is unchanged after each of them."""


class AdapterError(Exception):
    """An adapter file cannot be used; the model is unchanged."""


class AdapterCorruptError(AdapterError):
    """The file is truncated, altered, forged or no adapter."""


class AdapterBaseError(AdapterError):
    """The file is sound, but was trained on another base model."""
