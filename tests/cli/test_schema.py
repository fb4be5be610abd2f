"""``sage-sandbox schema``."""

from __future__ import annotations

import json

from sage_sandbox.cli.main import main
from sage_sandbox.workflow.model import schema


def test_schema_is_printed(capsys):
    code = main(["schema"])
    out, err = capsys.readouterr()

    assert (0, "") == (code, err)
    assert schema() == json.loads(out)
