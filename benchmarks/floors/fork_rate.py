"""How often a second a lean interpreter can fork, exit and be waited for: a program, run with ``python -I -S``.

Every way to give an operation a fresh process pays at least this. It starts at a line on stdin, so that several of it
can start at once, and prints the rate.
"""

import os
import sys
import time


def main(seconds: float) -> float:
    """Fork for so long; forks a second."""
    started = time.monotonic()
    forks = 0
    while time.monotonic() - started < seconds:
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        forks += 1
    return forks / (time.monotonic() - started)


if __name__ == "__main__":
    sys.stdin.readline()
    print(main(float(sys.argv[1])))
