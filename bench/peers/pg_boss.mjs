// pg-boss as a contender. Options: batchSize, localConcurrency.

import pg from "pg";
import { PgBoss } from "pg-boss";
import { run } from "./queue_peer.mjs";

await run(async (settings, jobs) => {
    const { batchSize, localConcurrency } = settings.options;
    const boss = new PgBoss({
        connectionString: settings.database_url, max: 12, useListenNotify: true, schedule: false,
    });
    boss.on("error", (error) => console.error(error));
    boss.on("warning", () => {});
    await boss.start();
    const pool = new pg.Pool({ connectionString: settings.database_url, max: 1 });
    return {
        migrate: () => boss.createQueue("work", { notify: true }),
        enqueue: (batch) => boss.insert("work", batch.map((data) => ({ data }))),
        enqueueOne: (job) => boss.send("work", job),
        isEmpty: async () =>
            !(await pool.query("SELECT EXISTS (SELECT FROM pgboss.job WHERE name = 'work' AND state < 'completed') AS some"))
                .rows[0].some,
        work: async () => {
            const options = { batchSize, localConcurrency, pollingIntervalSeconds: 0.5, burstWhenBatchFull: true };
            await boss.work("work", options, async (batch) => {
                for (const job of batch) jobs.started(job.data.number);
            });
            return async () => {};
        },
        close: async () => { await boss.stop({ graceful: false, close: true }); },
    };
});
