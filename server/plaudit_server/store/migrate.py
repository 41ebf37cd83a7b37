"""Bring a database to this release's schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

_SCRIPTS = Path(__file__).parent / "migrations"


class NewerSchema(Exception):
    """The database carries a schema that this release does not know."""


def config(connection: Connection) -> Config:
    """Alembic's configuration, in memory: there is no ini file to keep in step."""
    made = Config()
    made.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def upgrade(connection: Connection) -> None:
    """Migrate within the connection's open transaction: the whole way, or not at all.

    Raises:
        NewerSchema: a newer release wrote this database.
    """
    settings = config(connection)
    script = ScriptDirectory.from_config(settings)
    known = {revision.revision for revision in script.walk_revisions()}
    found = set(MigrationContext.configure(connection).get_current_heads())
    if found - known:
        raise NewerSchema(", ".join(sorted(found - known)))
    if found != set(script.get_heads()):
        command.upgrade(settings, "head")


def revision(connection: Connection) -> str:
    """The revision that a database is at."""
    return ", ".join(sorted(MigrationContext.configure(connection).get_current_heads()))
