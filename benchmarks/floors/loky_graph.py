"""A process tree that does nothing but run a graph on loky: ``-m benchmarks.floors.loky_graph NODES WORKERS``."""

import sys

from benchmarks.edges import layered
from benchmarks.floors.raw_loky import run_graph, warm_executor

if __name__ == "__main__":
    nodes, workers = map(int, sys.argv[1:])
    executor = warm_executor(workers)
    run_graph(executor, layered(nodes))
    executor.shutdown()
