"""Versions that are whole models, beside those that are adapters."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "versions", sa.Column("kind", sa.String(length=32), nullable=False, server_default=sa.text("'adapter'"))
    )
    op.execute("UPDATE versions SET kind = 'full' WHERE name = 'base'")


def downgrade() -> None:
    op.drop_column("versions", "kind")
