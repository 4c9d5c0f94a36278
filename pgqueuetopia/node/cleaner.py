"""Removes jobs that ended long ago, in batches; one node of a scope at a time."""

import random
from datetime import timedelta

import anyio
import structlog

from pgqueuetopia.db.repo import Repo
from pgqueuetopia.errors import QueuetopiaError
from pgqueuetopia.node.plan import Plan

log = structlog.get_logger("pgqueuetopia")

BATCH = 1_000
# Replies are for those who ask a little later, even where jobs are removed as they end.
REPLIES_KEPT = timedelta(hours=1)
LONGEST_FIRST_DELAY = 1.0


async def clean_for_ever(repo: Repo, plan: Plan) -> None:
    """Clean at once, and then every `cleanup_interval`."""
    await anyio.sleep(random.uniform(0, LONGEST_FIRST_DELAY))
    while True:
        try:
            await clean(repo, plan)
        except QueuetopiaError as error:
            log.warning("cleaning_failed", scope=plan.scope, error=str(error))
        await anyio.sleep(plan.cleanup_interval)


async def clean(repo: Repo, plan: Plan) -> int:
    """Remove everything that is older than the retention; returns how many jobs that were."""
    removed = 0
    while batch := await repo.clean(plan.scope, plan.job_retention, BATCH):
        removed += batch
    while await repo.clean_replies(plan.scope, max(plan.job_retention, REPLIES_KEPT), BATCH):
        pass
    if removed:
        log.info("jobs_removed", scope=plan.scope, jobs=removed)
    return removed
