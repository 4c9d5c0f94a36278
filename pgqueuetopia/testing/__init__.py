"""For tests of code that uses pgqueuetopia: perform jobs in line, and look at what was created."""

from pgqueuetopia.testing.created import assert_job_created, jobs_created, refute_job_created
from pgqueuetopia.testing.inline import drain, perform_job
from pgqueuetopia.testing.waiting import eventually

__all__ = [
    "assert_job_created",
    "drain",
    "eventually",
    "jobs_created",
    "perform_job",
    "refute_job_created",
]
