"""A registered model: the folder that MLflow keeps of it, and the code that lies in that folder.

A room of its own so that dvc.yaml can name both, though the code is executed by MLflow alone.
"""
