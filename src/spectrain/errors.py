"""The two kinds of failure that spectrain itself reports, each as one sentence for a person."""

LONGEST = 2000  # characters of a message: beyond that they are those of a quoted text


class SpectrainError(Exception):
    """Base of all errors that spectrain raises on purpose; the message names cause and cure."""

    exit_code = 1
    on_all = False  # True where every process of a run comes to it: one of them says it

    def __str__(self) -> str:
        """The message in one line, whatever stands in the names and texts that it quotes."""
        text = super().__str__()
        line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


class UsageError(SpectrainError, ValueError):
    """What was asked for is impossible: a wrong name, rank, path or order of calls. Exit code 2."""

    exit_code = 2
    on_all = True


class SpectrainWarning(UserWarning):
    """What works but is probably not what was meant; a category of its own, so that it can be filtered."""


class RunError(SpectrainError, RuntimeError):
    """What was asked for is possible but failed on the way: a full disk, a NaN loss. Exit code 1."""

    exit_code = 1


class NonFiniteError(RunError):
    """A matrix to decompose has NaN or infinite entries: training has diverged."""
