"""What runs outside the workers and asks them: from Python, and over HTTP."""
