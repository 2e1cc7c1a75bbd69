"""Messages on the wire, written from field names and numbers; see generate.py."""
