-- From now on whoever inserts a job notifies.
select f.horizon, f.alone from pgqueuetopia.fall_asleep($1::text) f
