// graphile-worker as a contender. Options: concurrentJobs, localQueueSize (0: none), batchDelay.

import { Logger, makeWorkerUtils, run as runWorker, runMigrations } from "graphile-worker";
import pg from "pg";
import { run } from "./queue_peer.mjs";

const logger = new Logger(() => () => {});

await run(async (settings, jobs) => {
    const { concurrentJobs, localQueueSize, batchDelay } = settings.options;
    const pgPool = new pg.Pool({ connectionString: settings.database_url, max: 12 });
    if (settings.mode === "migrate") await runMigrations({ pgPool, logger });
    const utils = await makeWorkerUtils({ pgPool, logger });
    const preset = {
        worker: {
            concurrentJobs,
            ...(localQueueSize > 0 ? { localQueue: { size: localQueueSize } } : {}),
            completeJobBatchDelay: batchDelay,
            failJobBatchDelay: batchDelay,
        },
    };
    return {
        migrate: async () => {},
        enqueue: (batch) => utils.addJobs(batch.map((job) => ({ identifier: "work", payload: job }))),
        enqueueOne: (job) => utils.addJob("work", job),
        isEmpty: async () =>
            !(await pgPool.query("SELECT EXISTS (SELECT FROM graphile_worker._private_jobs) AS some")).rows[0].some,
        work: async () => {
            const taskList = { work: (job) => { jobs.started(job.number); } };
            const runner = await runWorker({ pgPool, logger, preset, taskList, noHandleSignals: true, parsedCronItems: [] });
            return () => runner.stop();
        },
        close: async () => { await utils.release(); },
    };
});
