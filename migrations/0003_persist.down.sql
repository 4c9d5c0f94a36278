drop function pgqueuetopia.persist;
drop function pgqueuetopia.append_error(jsonb, jsonb, timestamptz);
