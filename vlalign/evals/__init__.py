"""Numbers and pages for people: metrics, evaluators, the report of a run."""
