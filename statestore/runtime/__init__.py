"""The life of a bot on its state: a session, what it restores at the start, what it trades by."""
