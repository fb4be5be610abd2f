"""One supervisor a module for each way of holding memory: by a cgroup where there is one, and sampled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from escape.attempt import Bench
from limits.remains import remains

from sage_sandbox.sandbox import cgroup
from sage_sandbox.sandbox.supervisor import Supervisor


@pytest.fixture(scope="module", params=["cgroup", "sampled"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bench whose operations are held one way or the other."""
    project = Path(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "sampled":
            patch.setattr(cgroup, "find", lambda: None)
        supervisor = Supervisor(str(project))
        supervisor.prepare()
    if request.param == "cgroup" and supervisor._home is None:
        supervisor.close()
        pytest.skip("no cgroup can be written here")
    yield Bench(supervisor, project, project)
    supervisor.close()


@pytest.fixture(autouse=True)
def clean(bench: Bench) -> Iterator[None]:
    """After each test the same supervisor runs the next operation, and of the one before nothing is left."""
    yield

    outcome = bench.run("import os\ndef run():\n    open('/tmp/x', 'x').close()\n    return os.getpid()")

    assert outcome.ok, outcome
    assert 1 == outcome.value()
    assert [] == remains(bench.supervisor)
