"""What runs once, before an engine starts: versions, features, the table."""
