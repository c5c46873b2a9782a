"""A pre-send hook as a process of its own, whose failures another process decides.

`python -m loadtest.bench.hook_process PORT CONTROL` answers questions on PORT. A line on CONTROL, the name of a mode or
`dead`, and a user whose texts get no answer (`-`: none), changes that; the answer is an empty line.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import cast

import uvloop

from loadtest.hook import Hook, Mode

DEAD = "dead"


async def serve(port: int, control: int) -> None:
    hook = Hook(port, "accept", random.Random(1))

    async def controlled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mode, unanswered = (await reader.readline()).decode().split()
        hook.unanswered = unanswered
        if mode == DEAD:
            hook.kill()
        else:
            hook.mode = cast(Mode, mode)
            await hook.start()
        writer.write(b"\n")
        writer.close()

    await hook.start()
    server = await asyncio.start_server(controlled, "127.0.0.1", control)
    await server.serve_forever()


async def change(control: int, mode: str, unanswered: str = "-") -> None:
    """Change how the process of this control port answers, and wait until it does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", control)
    writer.write(f"{mode} {unanswered}\n".encode())
    await reader.readline()
    writer.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1]), int(sys.argv[2])))
