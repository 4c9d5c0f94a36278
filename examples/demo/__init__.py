"""The demo: mails in strict order per queue, by real processes, on a PostgreSQL of its own."""
