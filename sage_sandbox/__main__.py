"""``python -m sage_sandbox``: the command line, never with the working directory on the module path."""

import os
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # `python -m` put the working directory first on sys.path: a project's own json.py would be ours.
        os.execv(sys.executable, [sys.executable, "-P", *sys.orig_argv[1:]])  # noqa: S606 - no shell is wanted

    from sage_sandbox.cli.main import main

    sys.exit(main())
