-- What so many steps have claimed has been started: whoever suspends need not wait for it any longer.
select pgqueuetopia.started($1::text, $2::integer)
