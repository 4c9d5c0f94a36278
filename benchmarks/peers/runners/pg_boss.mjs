// pg-boss: node pg_boss.mjs batch|job COMMAND [NUMBER ...], in the folder with node_modules.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { say, starts } from "./reports.mjs";

const [outcome, command, ...numbers] = process.argv.slice(2);
const require = createRequire(`${process.cwd()}/`);
const { PgBoss } = require("pg-boss");
const { version } = JSON.parse(readFileSync("node_modules/pg-boss/package.json"));

const QUEUE = "bench";
const CHUNK = 10_000;
// As its types and https://pgboss.io/api/workers document them. A fetch looks at all jobs that wait, so the
// larger the batch the better, and none can be larger than the number of keys; as long as batches come back
// full, the worker does not wait for its next poll. A batch has one outcome, unless its handler returns one
// for each job.
const settings = {
  batchSize: 1000,
  burstWhenBatchFull: true,
  pollingIntervalSeconds: 0.5,
  perJobResults: outcome === "job",
};
const policy = "key_strict_fifo";

async function withBoss(use) {
  const { PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE } = process.env;
  const boss = new PgBoss({
    host: PGHOST,
    port: Number(PGPORT),
    user: PGUSER,
    password: PGPASSWORD,
    database: PGDATABASE,
  });
  boss.on("error", console.error);
  await boss.start();
  await use(boss);
  return boss;
}

const stop = (boss) => boss.stop({ graceful: false });

async function enqueue(boss, jobs, keys) {
  for (let from = 0; from < jobs; from += CHUNK) {
    const numbers = Array.from({ length: Math.min(CHUNK, jobs - from) }, (_, n) => from + n);
    await boss.insert(
      QUEUE,
      numbers.map((n) => ({ data: { n }, singletonKey: `q${n % keys}` })),
    );
  }
}

const commands = {
  describe: () =>
    say({ version, runtime: `Node ${process.version}`, settings: JSON.stringify({ policy, ...settings }) }),
  install: () => withBoss((boss) => boss.createQueue(QUEUE, { policy })).then(stop),
  enqueue: (jobs, keys) => withBoss((boss) => enqueue(boss, jobs, keys)).then(stop),
  work: (jobs) => {
    const started = starts(jobs);
    return withBoss((boss) =>
      boss.work(QUEUE, settings, async (batch) => {
        batch.forEach(started);
        return settings.perJobResults ? batch.map(({ id }) => ({ id, status: "completed" })) : undefined;
      }),
    );
  },
};

await commands[command](...numbers.map(Number));
