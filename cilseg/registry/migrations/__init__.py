"""Alembic revisions of the registry's database; run by :mod:`cilseg.registry.migrate`."""
