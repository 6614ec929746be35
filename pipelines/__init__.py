"""What is submitted to a cluster: the only place that imports kfp; never torch or mlflow."""
