"""The `bigtransfer` command: a thin entrance for people; wires rooms as components do."""
