"""A kept run: what it is made of, its loop, its directory. Stopped at any moment, it resumes exactly."""
