"""Table queues: any table of the user's is a queue."""
