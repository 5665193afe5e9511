"""What runs inside a worker of an engine."""
