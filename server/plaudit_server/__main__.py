"""`python -m plaudit_server serve | openapi | up | migrate`. Arguments are read before anything heavy is imported."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plaudit_server.settings import Settings

EXIT_SETTING = 2


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code. 2: it cannot work as it is set, and one line said why."""
    command = _parser().parse_args(arguments).command
    if command == "openapi":
        return _openapi()
    settings = _settings()
    if isinstance(settings, str):
        return _refuse(settings)
    if command == "migrate":
        return _migrate(settings)
    if command == "up":
        from plaudit_server.supervisor import up

        return up(settings)
    return _serve(settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="plaudit_server", description="Plaudit's server. Settings are PLAUDIT_* variables."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="serve the API; starts the engine as a child")
    commands.add_parser("openapi", help="print the OpenAPI document")
    commands.add_parser("migrate", help="bring the database to this release's schema, as every start does; then end")
    commands.add_parser("up", help="server, engine and trainer together, until Ctrl-C")
    return parser


def _settings() -> "Settings | str":
    from pydantic import ValidationError

    from plaudit.environment import ELSEWHERE, unknown_variable
    from plaudit_server.settings import Settings

    others = (name for name in os.environ if not name.startswith("PLAUDIT_TRAINER_"))  # the trainer checks its own
    known = {name.upper() for name in Settings.model_fields}
    if refusal := unknown_variable(others, "PLAUDIT_", known | set(ELSEWHERE)):
        return refusal
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return f"PLAUDIT_{str(first['loc'][0]).upper()}: {first['msg']}"


def _refuse(message: str) -> int:
    sys.stderr.write(f"plaudit: {message}\n")
    return EXIT_SETTING


def _openapi() -> int:
    import json

    from plaudit_server.app import create_app
    from plaudit_server.settings import Settings

    document = create_app(Settings.model_construct()).openapi()
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
    return 0


def _serve(settings: "Settings") -> int:
    from plaudit_server.errors import SettingError
    from plaudit_server.serve import run
    from plaudit_server.store.database import DatabaseUnusable

    try:
        run(settings)
    except (SettingError, DatabaseUnusable) as error:
        return _refuse(error.message)
    return 0


def _migrate(settings: "Settings") -> int:
    import asyncio

    from plaudit_server.store.database import Database, DatabaseUnusable, sqlite_url

    url = settings.database_url or sqlite_url(settings.data / "plaudit.db")

    async def migrate() -> str:
        database = await Database.open(url, connections=settings.database_connections)
        try:
            return await database.schema()
        finally:
            await database.close()

    try:
        revision = asyncio.run(migrate())
    except DatabaseUnusable as error:
        return _refuse(error.message)
    sys.stdout.write(f"the database has schema {revision}, which this release needs\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
