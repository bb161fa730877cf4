"""The two kinds of failure that spectrain itself reports, each as one sentence for a person."""


class SpectrainError(Exception):
    """Base of all errors that spectrain raises on purpose; the message names cause and cure."""

    exit_code = 1


class UsageError(SpectrainError, ValueError):
    """What was asked for is impossible: a wrong name, rank, path or order of calls. Exit code 2."""

    exit_code = 2


class SpectrainWarning(UserWarning):
    """What works but is probably not what was meant; a category of its own, so that it can be filtered."""


class RunError(SpectrainError, RuntimeError):
    """What was asked for is possible but failed on the way: a full disk, a NaN loss. Exit code 1."""

    exit_code = 1


class NonFiniteError(RunError):
    """A matrix to decompose has NaN or infinite entries: training has diverged."""
