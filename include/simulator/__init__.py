"""A stand-in for Recall.ai: the API and its media host, for tests and for a demo without an account."""
