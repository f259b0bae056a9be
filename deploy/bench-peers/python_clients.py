"""Asks a peer as a user's Python program does: coroutines over one aiohttp session.

Says "warm", waits for a line, and prints what came of it as JSON.

python python_clients.py URL BODY_FILE HEADERS_JSON CALLERS DURATION_S
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp

WARM_S = 0.5


async def main(url: str, body: bytes, headers: dict[str, str], callers: int, duration_s: float) -> dict[str, object]:
    """Runs the callers."""
    connector = aiohttp.TCPConnector(limit=callers)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def call(until_s: float, took_ms: list[float]) -> None:
            while (asked_s := time.perf_counter()) < until_s:
                async with session.post(url, data=body) as response:
                    response.raise_for_status()
                    await response.read()
                took_ms.append((time.perf_counter() - asked_s) * 1000)

        async def run(seconds: float) -> list[float]:
            took_ms: list[float] = []
            until_s = time.perf_counter() + seconds
            await asyncio.gather(*(call(until_s, took_ms) for _ in range(callers)))
            return took_ms

        await run(WARM_S)
        print("warm", flush=True)  # noqa: T201
        sys.stdin.readline()
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        latencies_ms = await run(duration_s)
        return {
            "latencies_ms": latencies_ms,
            "took_s": time.perf_counter() - started_s,
            "client_cpu_s": time.process_time() - started_cpu_s,
        }


if __name__ == "__main__":
    url, body, headers, callers, duration_s = sys.argv[1:]
    content = Path(body).read_bytes()
    print(json.dumps(asyncio.run(main(url, content, json.loads(headers), int(callers), float(duration_s)))))  # noqa: T201
