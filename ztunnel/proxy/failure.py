"""Why a connection could not be made."""


class ConnectFailure(Exception):
    """The message is for people; `flags` is the metric label response_flags."""

    def __init__(self, reason: str, flags: str) -> None:
        super().__init__(reason)
        self.flags = flags
