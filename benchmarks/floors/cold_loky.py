"""A fresh process's first task in loky: prints when it ran (monotonic seconds). A program: ``-m``."""

import time

from loky import ProcessPoolExecutor

if __name__ == "__main__":
    executor = ProcessPoolExecutor(1)
    print(executor.submit(time.monotonic).result(), flush=True)
    executor.shutdown(kill_workers=True)
