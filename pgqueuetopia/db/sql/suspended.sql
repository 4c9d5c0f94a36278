-- Whether a scope, or one queue of it, is suspended.
select pgqueuetopia.some_suspended($1::text, 'suspended')
  or ($2::text is not null and pgqueuetopia.some_suspended($1, $2 || '_suspended'))
