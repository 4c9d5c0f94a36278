drop procedure pgqueuetopia.step;
drop type pgqueuetopia.answer;
drop type pgqueuetopia.question;
drop function pgqueuetopia.note_begun;
drop function pgqueuetopia.settled;
drop function pgqueuetopia.fall_asleep(text);
drop function pgqueuetopia.started(text, integer);
drop function pgqueuetopia.may_start(text);
