"""What is wrong with a database that runs jobs, and what to do about it."""
