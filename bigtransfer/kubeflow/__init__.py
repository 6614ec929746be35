"""Kubeflow Pipelines: submitting to it, running a pipeline in Docker, the images of both."""
