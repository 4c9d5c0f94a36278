-- Set a scope's own config.
insert into pgqueuetopia.job_configs (scope, key, value) values ($1::text, $2::text, $3::text)
on conflict (scope, key) do update set value = excluded.value, updated_at = clock_timestamp()
