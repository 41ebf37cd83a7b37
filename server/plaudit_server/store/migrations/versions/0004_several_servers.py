"""Several servers share a database: claims know their holder, and what all must agree on has a table."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "facts",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_facts")),
    )
    op.add_column("idempotency", sa.Column("holder", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("idempotency", "holder")
    op.drop_table("facts")
