"""Several servers share a database: claims know their holder, and what all must agree on has a table.

And indexes with which a lease costs what waits, not what was ever said.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
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
    op.create_index(op.f("ix_events_response_id_type"), "events", ["response_id", "type"], unique=False)
    op.drop_index(op.f("ix_events_response_id"), table_name="events")  # the new one does all that it did
    op.create_index(op.f("ix_tombstones_fate_response_id"), "tombstones", ["fate", "response_id"], unique=False)
    consent = sa.column("train_consent", sa.Boolean()).is_(True)
    op.create_index(
        "ix_interactions_learnable", "interactions", ["created_at"], sqlite_where=consent, postgresql_where=consent
    )


def downgrade() -> None:
    op.drop_index("ix_interactions_learnable", table_name="interactions")
    op.drop_index(op.f("ix_tombstones_fate_response_id"), table_name="tombstones")
    op.create_index(op.f("ix_events_response_id"), "events", ["response_id"], unique=False)
    op.drop_index(op.f("ix_events_response_id_type"), table_name="events")
    op.drop_column("idempotency", "holder")
    op.drop_table("facts")
