// What a program of a Supabase project says: supabase-js and Stripe's library, one line of JSON a call.
import { createInterface } from "node:readline";
import { createClient } from "@supabase/supabase-js";
import Stripe from "stripe";
import ws from "ws";

const calls = {
  // As supabase.com's gateway does, /functions/v1/NAME is led to the function's own process.
  async invoke({ url, ports, key, user, name, body, headers }) {
    const toFunction = (input, init) => {
      const asked = new URL(typeof input === "string" ? input : input.url);
      const function_ = asked.pathname.replace("/functions/v1/", "");
      return fetch(`http://127.0.0.1:${ports[function_]}/${function_}${asked.search}`, init);
    };
    const supabase = createClient(url, key, {
      auth: { persistSession: false, autoRefreshToken: false },
      realtime: { transport: ws },
      global: { fetch: toFunction, headers: user ? { Authorization: `Bearer ${user}` } : {} },
    });
    const { data, error } = await supabase.functions.invoke(name, { body, headers });
    const answer = error?.context instanceof Response ? error.context : undefined;
    return {
      data,
      error: error && {
        name: error.name,
        message: error.message,
        status: answer?.status,
        retryAfter: answer?.headers.get("retry-after"),
        body: answer && (await answer.json()),
      },
    };
  },

  // What this program runs in, and what supabase-js says where it is given no WebSocket.
  async runtime() {
    let refused = null;
    try {
      createClient("http://project.test", "key", { auth: { persistSession: false, autoRefreshToken: false } });
    } catch (error) {
      refused = error.message;
    }
    return { node: process.version, hasWebSocket: "WebSocket" in globalThis, refused };
  },

  // Of the database: { rpc: [name, arguments] }, or { from, insert | update | nothing, select, eq, options }.
  async database({ url, key, user, rpc, from, insert, update, select, eq, options }) {
    const supabase = createClient(url, key, {
      auth: { persistSession: false, autoRefreshToken: false },
      realtime: { transport: ws },
      global: { headers: user ? { Authorization: `Bearer ${user}` } : {} },
    });
    let asked = rpc ? supabase.rpc(...rpc) : supabase.from(from);
    if (insert) asked = asked.insert(insert, options ?? {});
    if (update) asked = asked.update(update);
    if (select) asked = asked.select(select);
    if (eq) asked = asked.eq(...eq);
    const { data, error, status } = await asked;
    return { data, error, status };
  },

  async stripe({ url, secret, payload, timestamp }) {
    const header = await new Stripe("sk_test_x").webhooks.generateTestHeaderStringAsync({ payload, secret, timestamp });
    const answer = await fetch(url, {
      method: "POST",
      body: payload,
      headers: { "stripe-signature": header, "content-type": "application/json; charset=utf-8" },
    });
    return { status: answer.status, body: await answer.json() };
  },
};

const say = (answer) => process.stdout.write(JSON.stringify(answer) + "\n");

say({ ready: true });
for await (const line of createInterface({ input: process.stdin })) {
  const { do: call, ...what } = JSON.parse(line);
  say(await calls[call](what).catch((error) => ({ thrown: String(error?.stack ?? error) })));
}
