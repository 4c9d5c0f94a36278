-- The schema itself stays, for schema_migrations lives in it.

drop table pgqueuetopia.job_configs;
drop function pgqueuetopia.is_suspension(text, text);
drop table pgqueuetopia.replies;
drop table pgqueuetopia.run_queue;
drop table pgqueuetopia.jobs;
