drop function pgqueuetopia.next_ready(text, integer[], timestamptz);
drop function pgqueuetopia.keep_only;
drop function pgqueuetopia.tidy;
drop function pgqueuetopia.take;
drop function pgqueuetopia.leave_prefetched;
drop function pgqueuetopia.wait_for_report(text, bigint[]);
drop function pgqueuetopia.adopt;
drop function pgqueuetopia.acquire;
drop function pgqueuetopia.priorities;
