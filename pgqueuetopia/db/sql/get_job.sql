-- One job of a scope, as it is now.
select * from pgqueuetopia.job_states s where s.scope = $1::text and s.id = $2::bigint
