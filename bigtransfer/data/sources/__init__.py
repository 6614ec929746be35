"""What a dataset looks like where it lies: class folders, a table, archives; each as a listing."""
