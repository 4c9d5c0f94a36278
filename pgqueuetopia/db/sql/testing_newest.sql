-- The newest job of a scope, by its id; 0 if there is none.
select coalesce(max(j.id), 0) from pgqueuetopia.jobs j where j.scope = $1::text
