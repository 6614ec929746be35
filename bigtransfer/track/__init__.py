"""What the outside world (MLflow) is told about a run.

A stage writes what happens into a journal, an append-only local file, and never calls MLflow while
it works. A second process, the shipper, replays the journal into MLflow as it grows. So a slow or
absent tracker costs the stage nothing, and the time it takes to import MLflow is spent beside the
work, not before it.
"""
