"""Text from elsewhere (names that peers chose, errors of libraries) made safe for one log line."""

from __future__ import annotations

import json


def quoted(text: str) -> str:
    """``text`` in double quotes as in JSON: nothing in it can end the line or the quotes."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return json.dumps(text)
