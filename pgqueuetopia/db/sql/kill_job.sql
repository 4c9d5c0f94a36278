-- Ask the node that runs a job to stop it.
select pg_notify('pgqueuetopia_jobs', 'kill ' || $1::bigint)
