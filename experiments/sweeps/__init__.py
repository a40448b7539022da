"""Many runs: jobs, the plan, experiments that fill a table, the summary."""
