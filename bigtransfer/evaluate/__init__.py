"""What a checkpoint is worth on a split, in numbers and as a report."""
