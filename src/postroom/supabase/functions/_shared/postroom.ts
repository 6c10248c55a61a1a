// Written by `postroom migrate --export`.
//
// Hands a request over to postroom, at POSTROOM_PUBLIC_URL, and its answer back: bytes, signature headers and
// status as they are. Nothing is checked here: postroom checks keys and signatures, once, over the bytes as they came.

// These belong to one connection, or fetch() makes its own.
const OWN_HEADERS = [
  "accept-encoding",
  "connection",
  "content-length",
  "expect",
  "host",
  "keep-alive",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
];

// As postroom's own answers have them.
const CORS = {
  "access-control-allow-origin": "*",
  "access-control-expose-headers": "retry-after",
};
const ALLOWED_HEADERS = "authorization, x-client-info, apikey, content-type";

/**
 * Serve this function by what postroom has at /functions/v1/{name}.
 *
 * @param timeoutMs After so many milliseconds the caller is told that there is no answer.
 */
export function forwardTo(name: string, { timeoutMs }: { timeoutMs: number }): void {
  Deno.serve((request) =>
    request.method === "OPTIONS" ? preflight(request) : forward(name, request, timeoutMs)
  );
}

async function forward(name: string, request: Request, timeoutMs: number): Promise<Response> {
  const house = Deno.env.get("POSTROOM_PUBLIC_URL")?.replace(/\/+$/, "");
  if (!house) {
    return away("POSTROOM_PUBLIC_URL is not set: supabase secrets set POSTROOM_PUBLIC_URL=https://…");
  }
  const hasBody = request.method !== "GET" && request.method !== "HEAD";
  try {
    const answer = await fetch(`${house}/functions/v1/${name}${new URL(request.url).search}`, {
      method: request.method,
      headers: { ...passedOn(request.headers), "accept-encoding": "identity" },
      body: hasBody ? await request.arrayBuffer() : undefined,
      redirect: "manual",
      signal: AbortSignal.timeout(timeoutMs),
    });
    // Read here, so that an answer that is cut off is a 503, not half a 200.
    const body = await answer.arrayBuffer();
    const isEmpty = [101, 204, 205, 304].includes(answer.status);
    const { "content-encoding": _, ...headers } = passedOn(answer.headers); // fetch() has decoded it
    return new Response(isEmpty ? null : body, { status: answer.status, headers });
  } catch (error) {
    return isTimeout(error)
      ? away(`postroom did not answer within ${timeoutMs / 1000} s: it may still do what was asked`, true)
      : away("postroom cannot be reached", wasSent(error));
  }
}

function passedOn(headers: Headers): Record<string, string> {
  return Object.fromEntries([...headers].filter(([name]) => !OWN_HEADERS.includes(name)));
}

// `uncertain`: postroom may have got the request, so an e-mail may have gone out.
function away(error: string, uncertain = false): Response {
  console.error(`postroom: ${error}`);
  return Response.json(uncertain ? { error, uncertain } : { error }, {
    status: 503,
    headers: { ...CORS, "retry-after": "5" },
  });
}

function isTimeout(error: unknown): boolean {
  return error instanceof DOMException && error.name === "TimeoutError";
}

// Older denos say it in the error itself, newer ones in its cause.
function wasSent(error: unknown): boolean {
  const cause = error instanceof Error ? error.cause : undefined;
  return !/\(Connect\)|dns error|invalid url/i.test(`${error} ${cause}`);
}

function preflight(request: Request): Response {
  const asked = (request.headers.get("access-control-request-headers") ?? "").slice(0, 1000);
  return new Response("ok", {
    headers: {
      ...CORS,
      "access-control-allow-methods": "POST, OPTIONS",
      "access-control-max-age": "86400",
      "access-control-allow-headers": asked ? `${ALLOWED_HEADERS}, ${asked}` : ALLOWED_HEADERS,
    },
  });
}
