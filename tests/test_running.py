from datetime import timedelta

import anyio

from pgqueuetopia import Err, Job, Snooze
from tests.support import Recorder, an_app, eventually


async def test_jobs_of_a_queue_run_in_the_order_of_their_creation(dsn: str) -> None:
    performer = Recorder()
    async with an_app(dsn, performer) as app, app.running():
        jobs = [await app.create_job("q", "send", {"n": n}) for n in range(20)]
        await eventually(lambda: len(performer.performed) == 20)
    assert performer.ids == [job.id for job in jobs]


async def test_a_failing_job_blocks_its_queue_and_no_other(dsn: str) -> None:
    performer = Recorder(lambda job: Err("no") if job.action == "fail" else None)
    async with an_app(dsn, performer) as app, app.running():
        failing = await app.create_job("blocked", "fail")
        await app.create_job("blocked", "work")
        other = await app.create_job("free", "work")
        await eventually(lambda: other.id in performer.ids)
        await eventually(lambda: performer.failed)
        assert performer.ids.count(failing.id) == 1
        assert (await app.get_job(failing)).state == "retrying"
        assert (await app.status("blocked")).blocked == 1
