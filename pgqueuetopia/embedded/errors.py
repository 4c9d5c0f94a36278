"""The one error of the embedded server."""

from pgqueuetopia.errors import QueuetopiaError


class EmbeddedUnavailable(QueuetopiaError):
    """The embedded PostgreSQL cannot run here; the text says what to do about it."""
