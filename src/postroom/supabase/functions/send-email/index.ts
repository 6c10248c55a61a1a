// Written by `postroom migrate --export`.
import { forwardTo } from "../_shared/postroom.ts";

forwardTo("send-email", { timeoutMs: 60_000 });
