// A shop on Supabase: Stripe says that a checkout is paid, and the customer gets a receipt. Once.
//
// Stripe calls the edge function stripe-webhook, which hands over to postroom; postroom stores the event, answers,
// and calls this shop until it says 200. The receipt goes into postroom's queue by supabase-js; its key
// makes of an event that comes twice one receipt.
import { createServer } from "node:http";
import { createClient } from "@supabase/supabase-js";
import { Webhook } from "standardwebhooks";
import ws from "ws";

const { SUPABASE_URL, SUPABASE_SECRET_KEY, SHOP_HOOK_SECRET, PORT = "3000" } = process.env;

const supabase = createClient(SUPABASE_URL, SUPABASE_SECRET_KEY, {
  auth: { persistSession: false, autoRefreshToken: false },
  realtime: { transport: ws }, // Node 20 has no WebSocket of its own; from 22 on this line may go
});
const hooks = new Webhook(SHOP_HOOK_SECRET);
const PAID = ["checkout.session.completed", "checkout.session.async_payment_succeeded"];

async function onEvent(event) {
  if (!PAID.includes(event.type)) return;
  const session = event.data.object;
  if (session.payment_status === "unpaid") return; // a bank debit: the second of PAID comes when it is paid
  const amount = (session.amount_total / 100).toFixed(2);
  const { error } = await supabase.functions.invoke("send-email", {
    body: {
      to: session.customer_details.email,
      subject: `Your receipt for ${amount} ${session.currency.toUpperCase()}`,
      html: `<p>Thank you! We have got ${amount} ${session.currency.toUpperCase()}.</p>`,
      email_type: "receipt",
      metadata: { session: session.id },
      idempotency_key: `receipt-${session.id}`,
      use_queue: true,
    },
  });
  if (error) throw error; // postroom comes again
}

createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  let event;
  try {
    event = hooks.verify(Buffer.concat(chunks).toString(), request.headers);
  } catch {
    response.writeHead(401).end();
    return;
  }
  try {
    await onEvent(event);
    response.writeHead(200).end();
  } catch (error) {
    console.error(`shop: ${event.id}: ${error.message}`);
    response.writeHead(503).end();
  }
}).listen(Number(PORT), "127.0.0.1", () => console.log(`shop: http://127.0.0.1:${PORT}`));
