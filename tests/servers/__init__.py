"""Real servers for the tests, each in a temporary folder on a free port, and ways to break them."""
