drop function pgqueuetopia.next_topic_due;
drop function pgqueuetopia.let_go_of_slots;
drop function pgqueuetopia.start_candidates;
drop function pgqueuetopia.line_up;
drop function pgqueuetopia.used_slots;
drop type pgqueuetopia.line;
drop type pgqueuetopia.topic_front;
drop function pgqueuetopia.topic_priorities(text, text, integer[]);
drop function pgqueuetopia.number_of(text, text);
