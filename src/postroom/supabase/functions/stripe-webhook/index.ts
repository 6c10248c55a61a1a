// Written by `postroom migrate --export`.
import { forwardTo } from "../_shared/postroom.ts";

forwardTo("stripe-webhook", { timeoutMs: 15_000 });
