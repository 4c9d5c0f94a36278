-- Write outcomes outside of step, for a node that has lost its session; the fence decides.
select p.saved
from pgqueuetopia.persist(
  $1::text, $2::bigint[], $3::bigint[], $4::text[], $5::interval[], $6::boolean[], $7::jsonb[], $8::jsonb[],
  $9::text[], '{}', '{}', '{}', null, $10::boolean, false
) p
