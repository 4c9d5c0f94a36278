-- One tick of a node: see migrations/0006_step.up.sql.
call pgqueuetopia.step(
  $1::text, $2::text,
  $3::bigint[], $4::bigint[], $5::text[], $6::interval[], $7::boolean[], $8::jsonb[], $9::jsonb[],
  $10::text[], $11::text[], $12::text[],
  $13::text[], $14::timestamptz[], $15::text[], $16::integer, $17::boolean, $18::boolean, $19::boolean,
  null, null, null, null, null, null, $20::boolean, null, null,
  $21::integer[], $22::timestamptz[], null, null, null
)
