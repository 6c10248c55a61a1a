// What every job queue in JavaScript does as a contender: see bench/drivers/queue_peer.py, whose modes and answers these are.

import { createInterface } from "node:readline";

const BATCH = 1000;

export class Jobs {
    constructor(count) {
        this.count = count;
        this.begun = 0;
        this.at = new Map();
        this.allBegun = new Promise((resolve) => { this.done = resolve; });
    }

    started(number) {
        this.begun += 1;
        this.at.set(number, performance.now());
        if (this.begun === this.count) this.done();
    }
}

const payload = (number, bytes) => ({ number, subject: `Order ${number}`, html: "x".repeat(bytes) });
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const say = (line) => process.stdout.write(`${line}\n`);

async function fill(peer, jobs, settings) {
    const took = [];
    for (let first = 0; first < jobs.count; first += BATCH) {
        const size = Math.min(BATCH, jobs.count - first);
        const batch = Array.from({ length: size }, (_, at) => payload(first + at, settings.payload_bytes));
        const began = performance.now();
        await peer.enqueue(batch);
        took.push((performance.now() - began) / 1e3);
    }
    return { took_s: took };
}

async function drain(peer, jobs) {
    const cpuBefore = process.cpuUsage();
    const began = performance.now();
    const stop = await peer.work();
    await jobs.allBegun;
    while (!(await peer.isEmpty())) await sleep(2);
    const tookS = (performance.now() - began) / 1e3;
    const used = process.cpuUsage(cpuBefore);
    await stop();
    return { took_s: tookS, cpu_s: (used.user + used.system) / 1e6 };
}

async function latency(peer, jobs, settings) {
    const committed = new Map();
    const stop = await peer.work();
    // The first one finds the worker awake and its connections made.
    await peer.enqueueOne(payload(-1, settings.payload_bytes));
    while (!jobs.at.has(-1)) await sleep(10);
    for (let number = 0; number < jobs.count - 1; number += 1) {
        await sleep(20 + Math.random() * 80);
        await peer.enqueueOne(payload(number, settings.payload_bytes));
        committed.set(number, performance.now());
    }
    await Promise.race([jobs.allBegun, sleep(30000)]);
    await stop();
    return { waits_ms: [...committed].map(([number, at]) => Math.max(0, jobs.at.get(number) - at)) };
}

export async function run(makePeer) {
    const settings = JSON.parse(process.argv[2]);
    const jobs = new Jobs(settings.count);
    const peer = await makePeer(settings, jobs);
    if (settings.mode === "migrate") {
        await peer.migrate();
        say("ready");
    } else {
        say("ready");
        const lines = createInterface({ input: process.stdin });
        await new Promise((resolve) => lines.once("line", resolve));
        say(JSON.stringify(await { fill, drain, latency }[settings.mode](peer, jobs, settings)));
        lines.close();
    }
    await peer.close();
    process.exit(0);
}
