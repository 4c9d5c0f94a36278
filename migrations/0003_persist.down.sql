drop function pgqueuetopia.persist;
drop function pgqueuetopia.move;
drop function pgqueuetopia.tell_ends(text, bigint[], bigint[]);
drop function pgqueuetopia.reply;
drop function pgqueuetopia.append_error(jsonb, jsonb, timestamptz);
