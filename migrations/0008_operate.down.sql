drop function pgqueuetopia.move_job(text, bigint, text);
drop function pgqueuetopia.tell_launched(bigint, bigint, text);
drop function pgqueuetopia.end_job(text, bigint, text);
drop function pgqueuetopia.is_prefetched;
drop view pgqueuetopia.nodes;
drop view pgqueuetopia.executing;
drop view pgqueuetopia.job_states;
