import subprocess
import sys

# In a process of its own: Python handles signals only in the main thread, where pytest-xdist runs no test.
SIGNALS = """
import os, signal
from heads.training import interrupt_on_signals

def interrupt(*reason):
    print("told", *reason)

numbers = (signal.SIGTERM, signal.SIGINT)
before = [signal.getsignal(number) for number in numbers]
with interrupt_on_signals(interrupt):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # no second SIGTERM
        os.kill(os.getpid(), number)
print([signal.getsignal(number) for number in numbers] == before)
"""


def test_signals_are_told():
    done = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["told", "told SIGTERM", "told", "True"]
