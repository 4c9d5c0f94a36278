-- The jobs that were claimed behind these gates have been started: whoever suspends need not wait any longer.
select pgqueuetopia.started($1::text, g.gate) from unnest($2::integer[]) g (gate)
