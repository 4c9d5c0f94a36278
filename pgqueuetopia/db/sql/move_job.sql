-- Move a job that does not run to another queue, or run one again there that has ended.
select m.id, m.why_not from pgqueuetopia.move_job($1::text, $2::bigint, $3::text) m
