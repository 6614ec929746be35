"""From a checkpoint to answers: on files, or as a model that carries its preprocessing."""
