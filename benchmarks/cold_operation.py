"""A fresh process's first sandboxed operation: prints when its result was there (monotonic seconds).

A program: ``-m benchmarks.cold_operation PROJECT [read]``.
"""

import sys
import time

import sage_sandbox as sage

if __name__ == "__main__":
    project, *reads = sys.argv[1:]
    with sage.Sandbox(sage.Policy(read=(".",) if reads else ()), project=project) as sandbox:
        outcome = sandbox.call("def run():\n    return 1\n")
        done = time.monotonic()
    if not outcome.ok:
        sys.exit(f"the operation was rejected: {outcome.reason}: {outcome.error}")
    print(done)
