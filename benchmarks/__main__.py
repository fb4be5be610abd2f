"""``python -m benchmarks [--quick] [--only NAME] [--json FILE]``: every question in a process of its own, then a table.

The line of JSON of each ``bench_*.py`` comes on stdout as it is answered with ``--lines``, the table in any case at the
end. The exit code is 1 if a benchmark could not be run; a missed aim is no error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import SCALES, Scale
from benchmarks.machine import HERE
from benchmarks.table import Answer, header, table


def names() -> list[str]:
    """Every benchmark, without ``bench_``."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def ask(name: str, scale: Scale) -> Answer | None:
    """Run one benchmark; its answer, or None if it failed (it has said why on stderr).

    It sees nothing of what the user has configured, and its temporary files go when it ends, however it ends.
    """
    ours = ("SAGE_", "XDG_", "PYTHONSAFEPATH", "PYTHONDONTWRITEBYTECODE")
    env = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    with tempfile.TemporaryDirectory(prefix="sage-bench-") as home:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.bench_{name}", "--scale", scale],
            cwd=HERE.parent,
            env={**env, "HOME": home, "TMPDIR": home},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=False,
        )
    if done.returncode or not done.stdout:
        return None
    answer: Answer = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> int:
    """Ask what was asked for, one question after the other."""
    reader = argparse.ArgumentParser(prog="python -m benchmarks", description="what sage-sandbox costs, beside floors")
    reader.add_argument("--quick", action="store_const", dest="scale", const="quick", help="fewer and smaller rounds")
    reader.add_argument("--scale", choices=SCALES, help=argparse.SUPPRESS)
    reader.set_defaults(
        scale="full"
    )  # two options that share it: the first one's default would be taken, which is none
    reader.add_argument("--only", action="append", choices=names(), metavar="NAME", help=f"one of {', '.join(names())}")
    reader.add_argument("--json", type=Path, metavar="FILE", help="write all answers there, too")
    reader.add_argument("--lines", action="store_true", help="print each answer as a line of JSON when it is there")
    chosen = reader.parse_args()
    answers: list[Answer] = []
    failed = []
    for name in chosen.only or names():
        print(f"{name} ...", file=sys.stderr, flush=True)
        answer = ask(name, chosen.scale)
        if answer is None:
            failed.append(name)
            continue
        answers.append({"benchmark": name, **answer})
        if chosen.lines:
            print(json.dumps(answers[-1], separators=(",", ":")), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")
    if answers:
        print(f"{header(answers)}\n\n{table(answers)}")
    for name in failed:
        print(f"failed: {name} (see above)", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
