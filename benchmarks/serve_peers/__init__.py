"""Endpoints that a user would write without cilseg, as the documentation of each framework shows it."""
