// graphile-worker: node graphile_worker.mjs PACKAGE COMMAND [NUMBER ...], in the folder with node_modules.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { now, say, starts, trickle } from "./reports.mjs";

// Its own performance test sets this too: no line is made for a job that has succeeded.
process.env.NO_LOG_SUCCESS = "1";

const [name, command, ...numbers] = process.argv.slice(2);
const require = createRequire(`${process.cwd()}/`);
const { Logger, makeWorkerUtils, run } = require(name);
const { version } = JSON.parse(readFileSync(`node_modules/${name}/package.json`));

// The configuration of https://worker.graphile.org/docs/performance, for jobs a second and for latency.
const settings = {
  concurrentJobs: 24,
  maxPoolSize: 25,
  localQueue: { size: 500 },
  completeJobBatchDelay: 0,
  failJobBatchDelay: 0,
};
const logger = new Logger(() => () => {});
const preset = { worker: { ...settings, logger } };
// With the default of 2,000 ms it stands still now and then, when the queues of all waiting jobs are locked.
const busy = { worker: { ...settings, logger, pollInterval: 50 } };
const CHUNK = 10_000;

async function withUtils(use) {
  const utils = await makeWorkerUtils({ preset });
  await use(utils);
  await utils.release();
}

async function enqueue(utils, jobs, queues) {
  for (let from = 0; from < jobs; from += CHUNK) {
    const numbers = Array.from({ length: Math.min(CHUNK, jobs - from) }, (_, n) => from + n);
    await utils.addJobs(
      numbers.map((n) => ({ identifier: "work", payload: { n }, queueName: `q${n % queues}` })),
    );
  }
}

const commands = {
  describe: () =>
    say({
      version,
      runtime: `Node ${process.version}`,
      settings: `${JSON.stringify(settings)}, for jobs a second pollInterval ${busy.worker.pollInterval}`,
    }),
  install: () => withUtils((utils) => utils.migrate()),
  enqueue: (jobs, queues) => withUtils((utils) => enqueue(utils, jobs, queues)),
  work: (jobs) => {
    const started = starts(jobs);
    return run({ preset: busy, taskList: { work: async () => started() } });
  },
  watch: () => run({ preset, taskList: { work: async ({ n }) => say({ job: n, start: now() }) } }),
  trickle: (jobs, pause) =>
    withUtils((utils) =>
      trickle(jobs, pause, (n) => utils.addJob("work", { n }, { queueName: `q${n % 10}` })),
    ),
};

await commands[command](...numbers.map(Number));
