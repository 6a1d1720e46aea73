"""Golden answers: stored registrations, with which later ones are compared (see __main__.py)."""
