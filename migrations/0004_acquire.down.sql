drop function pgqueuetopia.next_ready(text, integer[], timestamptz);
drop function pgqueuetopia.keep_only(text, text[]);
drop function pgqueuetopia.tidy;
drop function pgqueuetopia.take;
drop function pgqueuetopia.acquire;
drop function pgqueuetopia.priorities(text);
