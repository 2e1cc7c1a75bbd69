"""Why a connection could not be made."""


class ConnectFailure(Exception):
    """The message is for people; `flags` is the metric label response_flags.

    `unanswered`: nothing of the connection has reached the application at the
    other end, so another endpoint may be tried.
    """

    def __init__(self, reason: str, flags: str, unanswered: bool = True) -> None:
        super().__init__(reason)
        self.flags = flags
        self.unanswered = unanswered
