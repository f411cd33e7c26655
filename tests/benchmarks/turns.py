"""Turns: each thing that is compared lives in a process of its own; and the tables of the results."""

import contextlib
import multiprocessing
import os
import pathlib
import statistics
import time
import traceback
from typing import NamedTuple

import psutil

QUIET = 0.1  # the largest share of the machine that other processes may take in a valid turn


class Worker:
    """A process that makes one object and calls its methods on request; in between it sleeps.

    TensorFlow, PyTorch and OpenVINO would share thread pools and allocators in one process.

    Args:
        factory: a class at the top of a module; the object is made in the new process.
        *arguments: arguments of the class.

    Raises:
        WorkerError: if the object cannot be made.
    """

    def __init__(self, factory, *arguments):
        # A fork would copy the parent's threads and locks incompletely.
        context = multiprocessing.get_context("spawn")
        self.name = factory.__name__
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, factory, arguments), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self.receive()
        except WorkerError:
            self.close()
            raise

    def __call__(self, method, *arguments):
        """Returns what a method returns."""
        self.send(method, *arguments)
        return self.receive()

    def send(self, method, *arguments):
        """Asks for a method's result without waiting for it; `receive` waits."""
        try:
            self.connection.send((method, arguments))
        except BrokenPipeError:
            raise WorkerError(f"{self.name} ended, exit code {self.process.exitcode}") from None

    def receive(self):
        try:
            error, value = self.connection.recv()
        except EOFError:
            self.process.join(10)
            code = self.process.exitcode
            hint = " (killed: too little memory?)" if code == -9 else ""
            raise WorkerError(f"{self.name} ended, exit code {code}{hint}") from None
        if error:
            raise WorkerError(error)
        return value

    def close(self):
        """Ends the process."""
        self.connection.close()
        self.process.join(20)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


class WorkerError(Exception):
    """An error in a worker, in one line."""


def _serve(connection, factory, arguments):
    """Runs in the worker's process until the parent goes away."""
    made = None
    method = ""
    while True:
        try:
            value = None
            if made is None:
                made = factory(*arguments)
            else:
                value = getattr(made, method)(*arguments)
            connection.send((None, value))
        except Exception as error:
            if os.environ.get("BENCHMARKS_TRACEBACK"):
                traceback.print_exc()
            lines = str(error).splitlines() or [""]
            connection.send((f"{type(error).__name__}: {lines[0]}", None))
            if made is None:
                return
        try:
            method, arguments = connection.recv()
        except EOFError:
            return


class Turn(NamedTuple):
    """The seconds of a call, and the share of the machine that other processes took in this time."""

    seconds: float
    disturbance: float


def time_calls(function, least=0.1, count=1):
    """Returns a `Turn` of calls of a function.

    The first call of a short function wakes threads and caches after the others' turns and does not count.

    Args:
        function: takes no arguments.
        least: seconds that the calls should take together.
        count: how many of the timed things are in one call.
    """
    before, num_calls = _read_clocks(), 1
    function()
    if time.perf_counter() - before[0] < 0.5:
        before, num_calls = _read_clocks(), 0
        while time.perf_counter() - before[0] < least:
            function()
            num_calls += 1
    wall, busy, own = (now - then for now, then in zip(_read_clocks(), before, strict=True))
    return Turn(wall / num_calls / count, max(0.0, busy - own) / wall / os.cpu_count())


def _read_clocks():
    """Returns seconds: of wall time, of all cores (busy or stolen), of this process and its children."""
    busy = 0.0
    if os.path.exists("/proc/stat"):
        with open("/proc/stat") as file:
            user, nice, system, _, _, interrupts, soft_interrupts, stolen, *_ = file.readline().split()[1:]
        counts = map(int, (user, nice, system, interrupts, soft_interrupts, stolen))
        busy = sum(counts) / os.sysconf("SC_CLK_TCK")
    own = time.process_time()
    for child in psutil.Process().children(recursive=True):  # a DataLoader's workers, for instance
        with contextlib.suppress(psutil.NoSuchProcess):
            own += sum(child.cpu_times()[:2])
    return time.perf_counter(), busy, own


def take_turns(turns, num_rounds, budget=float("inf"), least=4):
    """Returns name -> `Turn`, the median of the quiet ones and their largest disturbance; and the rounds.

    Other processes slow things down by different factors: OpenMP's threads, which wait for each other at
    every loop, tenfold. So the rounds continue until each has had enough quiet turns, but not for ever.

    Args:
        turns: name -> function that returns a `Turn`.
        num_rounds: quiet turns of each that are enough. Three times as many rounds are the limit.
        budget: seconds after which no further round begins.
        least: rounds that are run in any case.
    """
    found = {name: [] for name in turns}
    start, done, fewest = time.perf_counter(), 0, 0
    while done < min(least, num_rounds) or (
        fewest < num_rounds and done < 3 * num_rounds and time.perf_counter() - start < budget
    ):
        for name, turn in turns.items():
            found[name].append(turn())
        done += 1
        fewest = min(sum(turn.disturbance < QUIET for turn in values) for values in found.values())
    medians = {}
    for name, values in found.items():
        kept = sorted(values, key=lambda turn: turn.disturbance)
        kept = kept[: max(2, sum(turn.disturbance < QUIET for turn in values))]
        medians[name] = Turn(statistics.median(turn.seconds for turn in kept), kept[-1].disturbance)
    return medians, done


def describe_rounds(medians, num_rounds):
    """Returns the part of a table's heading about its turns."""
    worst = max(turn.disturbance for turn in medians.values())
    warning = ": TOO MUCH FOR A FAIR COMPARISON" if worst >= QUIET else ""
    share = f"other processes took up to {100 * worst:.0f} % of the machine{warning}"
    return f"medians of the quiet turns of {num_rounds} rounds, in which {share}"


def limit_threads(num_threads):
    """Pins this process, and those it starts, to this many cores, and tells the libraries.

    Then a library that does not count its calling thread as one of its pool has no advantage.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = {}  # the first one of the threads that share a core
    for cpu in sorted(os.sched_getaffinity(0)):
        path = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(path.read_text() if path.exists() else cpu, cpu)
    os.sched_setaffinity(0, list(cores.values())[:num_threads])


def format_table(header, rows):
    """Returns a Markdown table; the first column is aligned to the left, the others to the right."""
    rows = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("| " + " | ".join([first.ljust(widths[0]), *cells]) + " |")
    return "\n".join(lines)
