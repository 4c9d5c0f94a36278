-- One tick of a node: see migrations/0006_step.up.sql.
call pgqueuetopia.step(
  $1::text, $2::text,
  $3::bigint[], $4::bigint[], $5::text[], $6::interval[], $7::boolean[], $8::jsonb[], $9::jsonb[],
  $10::text[], $11::text[],
  $12::text[], $13::text[], $14::integer, $15::boolean, $16::boolean, $17::boolean,
  null, null, null, null, null, null, $18::boolean, null, null,
  $19::integer[], $20::timestamptz[], null, null
)
