-- The claimed jobs have been started: whoever suspends need not wait any longer.
select pgqueuetopia.started($1::text)
