-- A sign of life, to and fro.
select pg_notify('pgqueuetopia_jobs', $1::text)
