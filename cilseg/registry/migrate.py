"""Making and upgrading the tables with Alembic, on a connection whose transaction the caller holds."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, select, table
from sqlalchemy import column as sql_column

from cilseg.registry.schema import HEAD, REVISIONS, meta

SCRIPTS = Path(__file__).parent / "migrations"
_FIRST = "1"
"""What the key ``schema`` of the table ``meta`` said before there were migrations."""


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database, ``None`` where it holds no registry; not necessarily one we know."""
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        found = connection.execute(select(sql_column("version_num")).select_from(table("alembic_version"))).scalar()
        if found is not None:
            return str(found)
    if meta.name not in tables:
        return None
    schema = connection.execute(select(meta.c.value).where(meta.c.key == "schema")).scalar_one_or_none()
    if schema is None:
        return None
    return REVISIONS[0] if schema == _FIRST else f"schema {schema}"


def upgrade(connection: Connection, *, to: str = HEAD) -> None:
    """Bring the tables to revision ``to`` within the connection's transaction."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    script = ScriptDirectory.from_config(config)
    if current_revision(connection) == REVISIONS[0] and "alembic_version" not in inspect(connection).get_table_names():
        MigrationContext.configure(connection).stamp(script, REVISIONS[0])

    def steps(revision: object, _: object) -> object:
        return script._upgrade_revs(to, revision)  # type: ignore[arg-type]

    with EnvironmentContext(config, script, fn=steps, destination_rev=to) as environment:
        environment.configure(connection=connection, fn=steps, transactional_ddl=True)
        environment.run_migrations()
