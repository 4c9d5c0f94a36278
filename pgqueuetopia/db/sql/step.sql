-- One tick of a node: see migrations/0007_step.up.sql.
call pgqueuetopia.step($1, $2, $3, null)
