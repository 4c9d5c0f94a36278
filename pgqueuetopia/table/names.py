"""What a table queue is called in the database, quoted."""

import hashlib
from dataclasses import dataclass

PREFIX = "pgqueuetopia_"


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one queue on one table; every property is SQL, ready to be put into a statement."""

    schema: str
    table: str
    queue: str

    @property
    def relation(self) -> str:
        """The table."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"

    @property
    def lock(self) -> str:
        """The column that says from when on a row may be claimed."""
        return quoted(self.lock_column)

    @property
    def private(self) -> str:
        """The column that keeps what must outlive a run."""
        return quoted(self.private_column)

    @property
    def index(self) -> str:
        """The index of the rows that have not ended; unique among all tables of the schema."""
        return quoted(self.identity)

    @property
    def ring(self) -> str:
        """The function that wakes the nodes that sleep."""
        return f"{quoted(self.schema)}.{quoted(self.identity)}"

    @property
    def rerun(self) -> str:
        """The function that has an updated row run again."""
        return f"{quoted(self.schema)}.{quoted(self._called('rerun'))}"

    @property
    def lock_column(self) -> str:
        """The lock column's name, not quoted."""
        return f"{PREFIX}{self.queue}_lock"

    @property
    def private_column(self) -> str:
        """The private column's name, not quoted."""
        return f"{PREFIX}{self.queue}_private"

    @property
    def identity(self) -> str:
        """One name for this queue on this table, not quoted: of its index, and in notifications."""
        return self._called("queue")

    def trigger(self, what: str) -> str:
        """The name of a trigger."""
        return quoted(self._called(what))

    def _called(self, what: str) -> str:
        """Unlike that of any other table, and within the 63 bytes that a name may have."""
        parts = "\0".join((self.schema, self.table, self.queue, what))
        return f"{PREFIX}{self.queue}_{hashlib.sha256(parts.encode()).hexdigest()[:8]}"


def quoted(name: str) -> str:
    """A name as an identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as a constant."""
    return "'" + text.replace("'", "''") + "'"
