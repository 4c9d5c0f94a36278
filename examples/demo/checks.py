"""Whether every promise was kept, asked of the database; each question finds what breaks one."""

import asyncpg

PROMISES = {
    "every mail is done": """
        select j.id as job, j.queue
        from pgqueuetopia.jobs j
        where j.outcome is distinct from 'succeeded'
        """,
    "every mail was delivered once": """
        select j.id as job, j.queue
        from pgqueuetopia.jobs j
        left join demo.deliveries d on d.job = j.id and d.delivered
        group by j.id, j.queue
        having count(d.job) <> 1
        """,
    "no queue delivered two at once": """
        select d.job, d.queue
        from (
          select *, max(ended) over (
            partition by queue order by started rows between unbounded preceding and 1 preceding
          ) as busy_until
          from demo.deliveries
        ) d
        where d.started < d.busy_until
        """,
    "no mail overtook another of its queue": """
        select d.job, d.queue
        from (
          select j.id as job, j.queue, min(r.started) as started, max(max(r.ended)) over (
            partition by j.queue order by j.scheduled_at, j.id
            rows between unbounded preceding and 1 preceding
          ) as free_from
          from pgqueuetopia.jobs j
          join demo.deliveries r on r.job = j.id
          group by j.id, j.queue, j.scheduled_at
        ) d
        where d.started < d.free_from
        """,
    "no mail started before its time": """
        select j.id as job, j.queue
        from pgqueuetopia.jobs j
        where j.attempted_at < j.scheduled_at
        """,
    "nothing started while paused": """
        select d.job, d.queue
        from demo.deliveries d
        join demo.pauses p on d.started > p.since and d.started < p.until
        """,
}


async def broken(
    connection: "asyncpg.Connection[asyncpg.Record]",
) -> dict[str, list[asyncpg.Record]]:
    """For each promise the mails that broke it: all lists are empty if all is well."""
    return {promise: await connection.fetch(question) for promise, question in PROMISES.items()}
