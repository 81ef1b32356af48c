"""Errors meant for the user: the message is shown as it is, without a traceback, and the exit code is not 0."""


class SegsweepError(Exception):
    """Something that the user can mend: the message says what, where, what was found and what is allowed."""


class ConfigError(SegsweepError):
    """The configuration is wrong; all mistakes are listed at once."""


class DataError(SegsweepError):
    """The data set, its split or its cache is not usable; the file, patient or key is named."""


class NotFiniteError(SegsweepError):
    """The loss became NaN or infinite; the step is named."""
