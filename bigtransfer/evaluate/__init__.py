"""What a checkpoint is worth on a split, scored and told to a report."""
