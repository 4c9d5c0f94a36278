-- Cancel or abandon a job that is not running.
select pgqueuetopia.end_job($1::text, $2::bigint, $3::text)
