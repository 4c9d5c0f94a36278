-- A run has launched something, which goes on, or that has ended.
select pgqueuetopia.tell_launched($1::bigint, $2::bigint, $3::text)
