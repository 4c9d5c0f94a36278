-- Write outcomes outside of step, for a node that has lost its session; the fence decides.
select p.saved
from pgqueuetopia.persist(
  $1::text, $2::text, $3::bigint[], $4::bigint[], $5::text[], $6::interval[], $7::boolean[], $8::jsonb[], $9::jsonb[],
  $10::text[], $11::bigint[], $12::boolean, false
) p
