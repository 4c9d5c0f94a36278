drop function pgqueuetopia.persist;
drop function pgqueuetopia.move;
drop function pgqueuetopia.reply;
drop function pgqueuetopia.append_error(jsonb, jsonb, timestamptz);
