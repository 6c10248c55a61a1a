"""
A tour of postroom in half a minute: `make demo`.

On a throw-away database it queues e-mails of several kinds and sends itself signed webhooks. Workers begin
with them and are killed in the middle, others take over, and tables tell what became of each. It ends with
exit 0 where all is as promised, and leaves nothing behind.

Read tour/emails.py and tour/webhooks.py downwards. They use what you have too: the command line, `Room`,
HTTP, and SQL.
"""

from __future__ import annotations

import asyncio
import sys
import time

from tour.emails import show_emails
from tour.house import LOG, opened_house
from tour.webhooks import show_webhooks

LIMIT_S = 150


async def main() -> int:
    """Both halves; 1 where something is not as promised."""
    async with asyncio.timeout(LIMIT_S), opened_house() as house:
        wrong = [*await show_emails(house), *await show_webhooks(house)]
        if wrong:
            print(f"\nNot as promised: {', '.join(wrong)}")
            print(LOG.read_text())
            return 1
    print("\nAll as promised: nothing lost, nothing doubled but what could not be known, nothing silent.")
    return 0


if __name__ == "__main__":
    began = time.monotonic()
    try:
        code = asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit("demo: interrupted")
    except TimeoutError:
        sys.exit(f"demo: not done within {LIMIT_S} s")
    print(f"({time.monotonic() - began:.0f} s)")
    sys.exit(code)
