drop function pgqueuetopia.claim;
drop type pgqueuetopia.claims;
drop function pgqueuetopia.let_go;
drop function pgqueuetopia.look;
drop function pgqueuetopia.as_claimed;
drop type pgqueuetopia.claimed_job;
