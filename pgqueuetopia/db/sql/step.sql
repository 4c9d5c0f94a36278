-- One tick of a node: see migrations/0007_step.up.sql.
call pgqueuetopia.step(
  $1::text, $2::text,
  $3::text::bigint[], $4::text::bigint[], $5::text[], $6::interval[], $7::boolean[], $8::jsonb[], $9::jsonb[], $10::text[],
  $11::text::text[], $38::text::boolean[], $12::text::text[], $13::text::text[],
  $34::text::integer[], $35::text::bigint[], $36::text::bigint[], $37::text::bigint[],
  $14::text::text[], $15::text::timestamptz[], $16::text[], $17::integer, $18::boolean, $19::boolean, $20::boolean,
  $21::integer,
  $25::text[], $26::integer[], $27::integer[], $28::timestamptz[], $29::text[], $30::integer[], $31::bigint[],
  $32::boolean[],
  null, null, null, null, null, null, null, null, $22::boolean, null, null,
  $23::integer[], $24::timestamptz[], $33::text, null, null, null
)
