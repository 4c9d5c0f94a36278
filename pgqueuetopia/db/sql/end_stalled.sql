-- End the sessions of nodes whose client does not read what the server sends, or stopped in the middle of a message:
-- no timeout of the server's counts then, and it would keep their queues locked for ever. After as long as each
-- session may live unheard, which its name tells. Whom we may not end is left alone.
select pg_terminate_backend(a.pid)
from pg_stat_activity a
where a.application_name ~ '^pgqueuetopia [^ ]+ [0-9.]+( [0-9]+)?$'
  and a.datname = current_database()
  and a.usename = current_user
  and a.pid <> pg_backend_pid()
  and (a.wait_event = 'ClientWrite' or (a.wait_event = 'ClientRead' and a.state = 'active'))
  and a.state_change < clock_timestamp() - make_interval(secs => split_part(a.application_name, ' ', 3)::float)
