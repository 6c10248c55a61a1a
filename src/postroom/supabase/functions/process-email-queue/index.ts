// Written by `postroom migrate --export`.
import { forwardTo } from "../_shared/postroom.ts";

forwardTo("process-email-queue", { timeoutMs: 70_000 });
