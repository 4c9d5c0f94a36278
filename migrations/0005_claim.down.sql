drop function pgqueuetopia.claim;
drop function pgqueuetopia.let_go;
drop function pgqueuetopia.look;
drop type pgqueuetopia.head;
drop function pgqueuetopia.as_claimed;
drop type pgqueuetopia.claimed_job;
drop function pgqueuetopia.some_suspended(text, text);
