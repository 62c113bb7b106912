"""The two errors that a user of the library can meet."""


class InputError(ValueError):
    """A picture, label or setting that cannot be used; the message says what is accepted."""


class WeightsError(RuntimeError):
    """Weights that are missing or do not fit; the message says what to put where."""
