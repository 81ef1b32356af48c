"""Many runs: the command line, its checks, a sweep's record, jobs, workers, the plan, what the screen shows."""
