-- The schema itself stays, for schema_migrations lives in it.

drop table pgqueuetopia.job_configs;
drop function pgqueuetopia.is_suspension(text, text);
drop table pgqueuetopia.replies;
drop table pgqueuetopia.run_queue;
drop table pgqueuetopia.jobs;
drop domain pgqueuetopia.outcome;
drop domain pgqueuetopia.json_array;
drop domain pgqueuetopia.json_object;
drop domain pgqueuetopia.number_of_runs;
drop domain pgqueuetopia.moment;
drop domain pgqueuetopia.duration;
drop domain pgqueuetopia.scope;
drop domain pgqueuetopia.name;
