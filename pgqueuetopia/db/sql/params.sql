-- The params of a job whose params were too large to travel with the claim.
select j.params from pgqueuetopia.jobs j where j.id = $1::bigint
