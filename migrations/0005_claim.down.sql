drop function pgqueuetopia.claim;
drop function pgqueuetopia.as_claimed;
drop type pgqueuetopia.claimed_job;
drop function pgqueuetopia.some_suspended(text, text);
