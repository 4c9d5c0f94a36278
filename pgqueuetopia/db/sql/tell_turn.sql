-- Tell the other nodes that this one has taken a job (LRUNode).
select pg_notify('pgqueuetopia_jobs', $1::text)
