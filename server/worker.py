"""The worker process: loads analyses, and answers batches. It owns its device; it knows no store and no network.

One thread reads jobs from the pipe, so that the server never waits for room in it; the main thread computes. When the
server is gone, the pipe ends, and so does the worker.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection

from fieldpost.errors import InvalidObservationError
from server.analyses import Analysis, AnalysisInput, AnalysisResult, load_analysis
from server.jobs import Job, JobDone, WorkItem, pack_results


def run_worker(connection: Connection, threads: int) -> None:
    """Serves jobs until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends the pipe
    import torch  # here, so that importing this module for its types costs nothing

    torch.set_num_threads(threads)
    jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, jobs), daemon=True).start()
    loaded: dict[tuple[str, int], Analysis] = {}
    while (job := jobs.get()) is not None:
        try:
            connection.send(_answer(job, loaded))
        except (BrokenPipeError, ConnectionResetError):
            return


def _receive(connection: Connection, jobs: queue.SimpleQueue[Job | None]) -> None:
    try:
        while True:
            jobs.put(connection.recv())
    except (EOFError, OSError):
        jobs.put(None)


def _answer(job: Job, loaded: dict[tuple[str, int], Analysis]) -> JobDone:
    """Runs a batch. Whatever a model raises is an answer: the loop goes on."""
    try:
        key = (job.analysis, job.version)
        if key not in loaded:
            loaded[key] = load_analysis(job.analysis, job.version)
        return pack_results(job.job_id, predict_items(loaded[key], job.items))
    except Exception as error:
        return JobDone(job.job_id, failure=_in_words(error))


def predict_items(analysis: Analysis, items: list[WorkItem]) -> list[AnalysisResult | str]:
    """Decodes the payloads and asks the analysis; what cannot be answered is said in its place."""
    results: dict[int, AnalysisResult | str] = {}
    inputs: dict[int, AnalysisInput] = {}
    for place, item in enumerate(items):
        try:
            inputs[place] = item.decode()
        except InvalidObservationError as error:
            results[place] = _in_words(error)
    for place, answer in zip(inputs, analysis.predict(list(inputs.values())), strict=True):
        results[place] = _in_words(answer) if isinstance(answer, Exception) else answer
    return [results[place] for place in range(len(items))]


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    run_worker(Connection(int(sys.argv[1])), int(sys.argv[2]))
