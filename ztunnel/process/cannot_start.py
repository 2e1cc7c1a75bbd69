"""Why a process ends for good."""


class CannotStart(Exception):
    """Starting again would change nothing; the text says what is wrong."""
