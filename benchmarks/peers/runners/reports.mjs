// What a runner in Node says: a line of JSON an event, times in seconds by the monotonic clock.
import { setTimeout } from "node:timers/promises";

export const now = () => Number(process.hrtime.bigint()) / 1e9;

export const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);

// Called at the start of every job: says when the first of so many jobs began, once all have begun.
export function starts(jobs) {
  let begun = 0;
  let first;
  return () => {
    first ??= now();
    begun += 1;
    if (begun === jobs) say({ first });
  };
}

// Enqueues so many jobs one at a time, with pauses between one and two times so many seconds.
export async function trickle(jobs, pause, enqueue) {
  for (let n = 0; n < jobs; n += 1) {
    await setTimeout(pause * (1 + Math.random()) * 1000);
    const called = now();
    await enqueue(n);
    say({ job: n, called, returned: now() });
  }
}
