drop function pgqueuetopia.claim;
drop type pgqueuetopia.claimed_job;
drop function pgqueuetopia.some_suspended(text, text);
