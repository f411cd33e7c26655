"""Several processes from one command: started and watched on this machine, or joined on many."""

import argparse
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

import keras

from heads.processes import count_devices, gather, is_first_process, join_processes, leave_processes
from heads.training.files import RunError
from heads.training.folders import hold_run_folder

# These options say where a training runs, not what it is, and are not among its settings.
OPTIONS = ("processes", "coordinator", "process_id", "num_processes", "device")
PARENT = "HEADS_PARENT_PROCESS"  # in the environment of workers: their parent's id
GRACE_SECONDS = 5  # after one has failed, for the others to report it and to finish writing
STOP_SECONDS = 600  # after Ctrl-C or SIGTERM, for the first to save


def run_in_folder(function, arguments, kind: str):
    """Calls `function(arguments, folder)` in `arguments.output`, a folder that no other training uses.

    With `--processes`, each process calls it, in the same folder; see `heads.processes`.

    Args:
        function: Trains, and returns nothing.
        arguments: With `output`, `resume`, `seed` and `mixed_precision`, as `examples/options.py` adds them;
            see `hold_run_folder`. The options of processes are removed from them.
        kind: Kind of the run, which names its folder if there is no `output`.

    Raises:
        SystemExit: With only the message, if the training itself says why it ends.
    """
    try:
        options = take_process_options(arguments)
        if options["processes"]:
            _check_script(function)
            check_batch_size(arguments, options["processes"])
            if status := start_workers(options["processes"]):
                raise SystemExit(status)
            return
        with take_place(options, arguments, kind) as open_folder:
            keras.utils.set_random_seed(arguments.seed)
            if arguments.mixed_precision:
                keras.config.set_dtype_policy("mixed_bfloat16")
            with open_folder() as folder:
                function(arguments, folder)
    except (RunError, FloatingPointError) as error:
        raise SystemExit(f"\n{error}") from error


def take_process_options(arguments: argparse.Namespace) -> dict:
    """Removes the options of processes from the arguments and returns them, checked.

    Raises:
        RunError: If they do not fit together.
    """
    found = {name: vars(arguments).pop(name, None) for name in OPTIONS}
    together = [found[name] is not None for name in ("coordinator", "process_id", "num_processes")]
    if any(together) and not all(together):
        raise RunError(
            "--coordinator, --process-id and --num-processes go together: each process of a cluster needs "
            f"all three. Received: {found}"
        )
    if found["processes"] and any(together):
        raise RunError(
            "--processes starts all processes on this machine, --coordinator joins those of a cluster: pass "
            f"one of the two. Received: {found}"
        )
    if found["device"] is not None and not any(together):
        raise RunError("--device needs --coordinator: --processes gives each process a device of its own")
    return found


def check_batch_size(arguments: argparse.Namespace, num_devices: int):
    """Raises a RunError if the pictures of a batch cannot be divided equally."""
    batch_size = getattr(arguments, "batch_size", 0)
    if batch_size % num_devices:
        raise RunError(
            f"--batch-size must be a multiple of {num_devices}, the number of devices, which share each "
            f"batch. Received: {batch_size}"
        )


def start_workers(count: int) -> int:
    """Starts this script again in several processes, and watches them until they have ended.

    Args:
        count: How many processes.

    Returns:
        The exit status: 0, or that of the process that failed, after which the others are ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--processes")
    _, others = parser.parse_known_args(sys.argv[1:])
    environment = {**os.environ, "KERAS_BACKEND": "jax", PARENT: str(os.getpid())}
    workers = []
    with _pass_signals_on(workers) as was_stopped:
        for index in range(count):
            place = f"--coordinator {coordinator} --process-id {index} --num-processes {count}"
            command = [sys.executable, sys.argv[0], *others, *place.split(), "--device", str(index)]
            # In a session of its own, or the terminal's Ctrl-C would reach it twice.
            workers.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
            )
        try:
            return _watch(workers, was_stopped)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


@contextlib.contextmanager
def take_place(options: dict, arguments: argparse.Namespace, kind: str):
    """Joins the other processes if the options say so, and holds the output folder.

    Args:
        options: From `take_process_options`.
        arguments: Arguments of the script; `batch_size` is checked.
        kind: Of the run.

    Yields:
        Function without arguments that returns the context of the output folder: the first process holds it,
        the others get its path.

    Raises:
        RunError: If this process cannot join, or the pictures of a batch cannot be divided.
    """
    if options["coordinator"] is None:
        yield lambda: hold_run_folder(arguments, kind)
        return
    if PARENT in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[PARENT]),), daemon=True).start()
    place = options["process_id"], options["num_processes"]
    try:
        join_processes(options["coordinator"], *place, options["device"])
    except ValueError as error:
        raise RunError(str(error)) from error
    check_batch_size(arguments, count_devices())
    with contextlib.ExitStack() as stack:
        if place[0]:  # only the first one prints
            quiet = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(quiet))
        stack.enter_context(_end_on_errors(*place))
        yield lambda: _share_run_folder(arguments, kind)


def go_on_alone() -> bool:
    """Returns whether this is the first process of a training, which goes on alone to draw pictures.

    The scripts of the others end here.
    """
    is_first = is_first_process()
    leave_processes()
    return is_first


def _check_script(function):
    """Raises a RunError unless this Python runs the script of the function."""
    path = function.__code__.co_filename
    if os.path.realpath(sys.argv[0]) != os.path.realpath(path):
        raise RunError(
            f"--processes starts the script again, so it must be what Python runs: python {path} "
            f"--processes ... Received: {sys.argv[0]}"
        )


@contextlib.contextmanager
def _share_run_folder(arguments, kind):
    """Yields the folder of the run, which the first process holds; the others must see it, too."""
    with contextlib.ExitStack() as stack:
        if is_first_process():
            stack.enter_context(hold_run_folder(arguments, kind))
        path = pathlib.Path(gather(os.path.abspath(arguments.output or ""))[0])
        seen = gather(path.is_dir())
        if not all(seen):
            raise RunError(
                "--output must be a folder that all processes see, as on a shared disk. Received: "
                f"{path}, which processes {[index for index, sees in enumerate(seen) if not sees]} do not see"
            )
        yield path


@contextlib.contextmanager
def _end_on_errors(index, count):
    """Ends this process at once if it fails: at exit, JAX would wait for the others, and they for it."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code in (None, 0, 128 + signal.SIGTERM):
            raise  # all processes end so
        if isinstance(error, RunError | FloatingPointError | SystemExit):
            print(f"\nprocess {index} of {count}: {error}", file=sys.stderr)  # noqa: T201
        else:
            traceback.print_exc()
            print(f"process {index} of {count} failed, see above", file=sys.stderr)  # noqa: T201
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def _end_with(parent):
    """Ends this process when its parent has ended without notice, as by SIGKILL."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextlib.contextmanager
def _pass_signals_on(workers):
    """Passes Ctrl-C and SIGTERM on to the workers; yields a list that is empty until one arrives."""
    numbers = []

    def pass_on(number, frame):
        numbers.append(number)
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(workers, was_stopped):
    """Returns the joint exit status of the workers, when all have ended or one has failed."""
    failed, deadline = None, None
    while True:
        codes = [worker.poll() for worker in workers]
        ended = [index for index, code in enumerate(codes) if code is not None]
        if failed is None:
            failed = next((index for index in ended if codes[index]), None)
            if failed is not None:
                deadline = time.monotonic() + (STOP_SECONDS if was_stopped else GRACE_SECONDS)
        if len(ended) == len(workers):
            break
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.1)
    if failed is None:
        return 0
    if not was_stopped:
        print(  # noqa: T201
            f"\nProcess {failed} of {len(workers)} ended {_describe(codes[failed])}, so all end. --resume "
            "goes on from the last state.",
            file=sys.stderr,
            flush=True,
        )
    return codes[failed] if codes[failed] > 0 else 128 - codes[failed]


def _describe(code):
    if code > 0:
        return f"with exit status {code}; its message is above"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"
