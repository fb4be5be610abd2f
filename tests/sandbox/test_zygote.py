from sage_sandbox.sandbox.job import Job
def test_x(forked_zygotes, supervisor):
    for n in range(2):
        outcome = supervisor.run(Job("python", code="def run(params): return 42", project=supervisor.project))
        print(outcome)
        assert outcome.ok
    supervisor.close()
    print([a.status for a in forked_zygotes])
