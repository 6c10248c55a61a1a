// Written by `postroom migrate --export`.
import { forwardTo } from "../_shared/postroom.ts";

forwardTo("process-webhook-retries", { timeoutMs: 70_000 });
