"""What runs inside a container: one command line each, thin; the library does the work."""
