"""Every table. Times are milliseconds since 1970 UTC; texts of people are sealed bytes (`domain.privacy`).

Nothing here is SQLite's own: the same definitions make the PostgreSQL schema.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

ID = String(64)
NAME = String(128)
VERSION = String(16)
STATE = String(32)
JSON_VALUE = JSON(none_as_null=True)
COUNTER = BigInteger().with_variant(Integer(), "sqlite")
"""A row number the database counts up. SQLite does that for INTEGER keys only."""

interactions = Table(
    "interactions",
    metadata,
    Column("id", ID, primary_key=True),
    Column("request_id", NAME, nullable=False),
    Column("created_at", BigInteger, nullable=False, index=True),
    Column("version", VERSION, nullable=False),
    Column("arm", STATE, nullable=False),
    Column("model_requested", ID, nullable=False),
    Column("end_user", ID),
    Column("key_id", ID),
    Column("prompt_key", ID, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("prompt_ids", LargeBinary),
    Column("response_ids", LargeBinary),
    Column("logprobs", LargeBinary),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("sampling", JSON_VALUE, nullable=False),
    Column("finish_reason", STATE),
    Column("status", STATE, nullable=False),
    Column("train_consent", Boolean, nullable=False),
    Column("redacted", Boolean, nullable=False),
    Column("metadata", JSON_VALUE, nullable=False),
    Column("ttft_ms", Float),
    Column("duration_ms", Float),
    Column("consumed_by", ID),
    Column("segment", COUNTER),
    Column("refused", Boolean),
    Index(None, "version", "id"),
    Index(None, "end_user", "id"),
)
# Only answers that a rollout drew an arm for: all others cost this index nothing.
Index(
    None,
    interactions.c.segment,
    interactions.c.end_user,
    interactions.c.arm,
    sqlite_where=interactions.c.segment.is_not(None),
    postgresql_where=interactions.c.segment.is_not(None),
)

# Prompts of the log are drawn from these, newest first. Without it a log of little consent would be read end to end.
Index(
    "ix_interactions_learnable",
    interactions.c.created_at,
    sqlite_where=interactions.c.train_consent.is_(True),
    postgresql_where=interactions.c.train_consent.is_(True),
)

# A copy of `interactions.metadata` to filter by: JSON path operators differ between databases, and cannot be indexed.
# Values are not in the index: PostgreSQL refuses index rows of more than a third of a page.
interaction_metadata = Table(
    "interaction_metadata",
    metadata,
    Column("response_id", ID, ForeignKey("interactions.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Index(None, "name", "response_id"),
)

# Answers that have no row, for ever: erased, or made with `store: false`.
tombstones = Table(
    "tombstones",
    metadata,
    Column("response_id", ID, primary_key=True),
    Column("fate", STATE, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index(None, "fate", "response_id"),
)

# No foreign key to the answer: a vote may come before the answer's row. `end_user` is '' for nobody in particular,
# because NULLs would escape the uniqueness. `spent`: the answer was consumed, or can never be learnt from, so the vote
# counts but teaches nothing more.
feedback = Table(
    "feedback",
    metadata,
    Column("id", ID, primary_key=True),
    Column("response_id", ID, nullable=False),
    Column("key", NAME, nullable=False),
    Column("end_user", ID, nullable=False),
    Column("value", Float),
    Column("tags", JSON_VALUE, nullable=False),
    Column("comment", LargeBinary),
    Column("correction", LargeBinary),
    Column("source", STATE, nullable=False),
    Column("occurred_at", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False, index=True),
    Column("version", VERSION),
    Column("revision", Integer, nullable=False),
    Column("retracted", Boolean, nullable=False),
    Column("trainable", Boolean, nullable=False),
    Column("spent", Boolean, nullable=False),
    UniqueConstraint("response_id", "key", "end_user"),
    Index(None, "version", "key"),
    Index(None, "spent", "trainable", "response_id"),
    Index(None, "end_user", "received_at"),
)

feedback_revisions = Table(
    "feedback_revisions",
    metadata,
    Column("feedback_id", ID, ForeignKey("feedback.id"), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("value", Float),
    Column("tags", JSON_VALUE, nullable=False),
    Column("comment", LargeBinary),
    Column("correction", LargeBinary),
    Column("source", STATE, nullable=False),
    Column("occurred_at", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("retracted", Boolean, nullable=False),
    Column("trainable", Boolean, nullable=False),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("id", ID, primary_key=True),
    Column("chosen_id", ID, index=True),
    Column("rejected_id", ID, index=True),
    Column("chosen_text", LargeBinary),
    Column("rejected_text", LargeBinary),
    Column("chosen_version", VERSION),
    Column("rejected_version", VERSION),
    Column("tie", STATE),
    Column("end_user", ID),
    Column("received_at", BigInteger, nullable=False),
    Column("trainable", Boolean, nullable=False),
    Column("spent", Boolean, nullable=False),
    Index(None, "spent", "trainable"),
)

# `spent`, of regenerations: the answer that was kept has been learnt from, or can be no more.
events = Table(
    "events",
    metadata,
    Column("id", ID, primary_key=True),
    Column("response_id", ID, nullable=False),
    Column("type", STATE, nullable=False),
    Column("new_response_id", ID),
    Column("end_user", ID),
    Column("occurred_at", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("spent", Boolean, nullable=False, server_default=false()),
    Index(None, "type", "spent"),
    Index(None, "response_id", "type"),
)

versions = Table(
    "versions",
    metadata,
    Column("name", VERSION, primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("kind", STATE, nullable=False, server_default="adapter"),
    Column("state", STATE, nullable=False),
    Column("reason", Text),
    Column("parent", VERSION, ForeignKey("versions.name")),
    Column("location", Text),
    Column("manifest_sha256", ID),
    Column("run_id", ID, ForeignKey("runs.id"), unique=True),
    Column("records", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("gate", JSON_VALUE),
    Column("proof", JSON_VALUE),
    Column("metrics", JSON_VALUE, nullable=False),
    Column("tainted", Boolean, nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", STATE, primary_key=True),
    Column("version", VERSION, ForeignKey("versions.name"), nullable=False),
    Column("etag", Integer, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("actor", NAME, nullable=False),
    Column("reason", Text),
)

# `live` is 1 while the rollout is running or paused, else NULL: unique, so that there is one at most. `segment` and
# `segment_started_at` are those of the newest row of `rollout_segments`. `revision` counts changes of state and step.
rollouts = Table(
    "rollouts",
    metadata,
    Column("id", ID, primary_key=True),
    Column("live", Integer, unique=True),
    Column("candidate", VERSION, ForeignKey("versions.name"), nullable=False),
    Column("stable", VERSION, ForeignKey("versions.name"), nullable=False),
    Column("stable_etag", Integer, nullable=False),
    Column("state", STATE, nullable=False),
    Column("step", Integer, nullable=False),
    Column("steps", JSON_VALUE, nullable=False),
    Column("min_raters", Integer, nullable=False),
    Column("max_duration_ms", BigInteger, nullable=False),
    Column("guardrails", JSON_VALUE, nullable=False),
    Column("auto_promote", Boolean, nullable=False),
    Column("auto_rollback", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("paused_at", BigInteger),
    Column("paused_ms", BigInteger, nullable=False),
    Column("actor", NAME, nullable=False),
    Column("reason", Text),
    Column("report", JSON_VALUE),
    Column("revision", Integer, nullable=False),
    Column("segment", COUNTER, nullable=False),
    Column("segment_started_at", BigInteger, nullable=False),
)

# Stretches of constant weight. Ids grow with time, so a user's smallest is the first.
rollout_segments = Table(
    "rollout_segments",
    metadata,
    Column("id", COUNTER, primary_key=True, autoincrement=True),
    Column("rollout_id", ID, ForeignKey("rollouts.id"), nullable=False, index=True),
    Column("weight", Float, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

# `held_by` is the worker while the lease is live, else NULL: unique, so that a worker holds one batch at most.
# `version` has no foreign key: versions refer to runs and runs to batches, and a circle could not be created in order.
batches = Table(
    "batches",
    metadata,
    Column("id", ID, primary_key=True),
    Column("worker", NAME, nullable=False),
    Column("held_by", NAME, unique=True),
    Column("state", STATE, nullable=False, index=True),
    Column("reason", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("lease_expires_at", BigInteger, nullable=False),
    Column("version", VERSION, index=True),
    Column("records", Integer, nullable=False),
    Column("up", Integer, nullable=False),
    Column("down", Integer, nullable=False),
    Column("comparisons", Integer, nullable=False),
    Column("dropped", JSON_VALUE, nullable=False),
)

# What live leases hold: answers (`chatcmpl-…`) and comparisons (`cmp_…`). The key says that an item is held once.
claims = Table(
    "claims",
    metadata,
    Column("item_id", ID, primary_key=True),
    Column("batch_id", ID, ForeignKey("batches.id"), nullable=False, index=True),
)

# What was trained on, or set aside, for ever. The key says: at most once. Nothing deletes from here.
consumptions = Table(
    "consumptions",
    metadata,
    Column("item_id", ID, primary_key=True),
    Column("batch_id", ID, ForeignKey("batches.id"), nullable=False, index=True),
    Column("at", BigInteger, nullable=False),
)

# `number` is reserved for what the run will publish, and is never given twice.
runs = Table(
    "runs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("batch_id", ID, ForeignKey("batches.id"), nullable=False, unique=True),
    Column("worker", NAME, nullable=False),
    Column("number", Integer, nullable=False, unique=True),
    Column("parent", VERSION, nullable=False),
    Column("parent_location", Text),
    Column("warm_start_location", Text),
    Column("state", STATE, nullable=False, index=True),
    Column("stage", NAME),
    Column("progress", Float),
    Column("reason", Text),
    Column("config", JSON_VALUE, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("metrics", JSON_VALUE, nullable=False),
)

run_metrics = Table(
    "run_metrics",
    metadata,
    Column("id", COUNTER, primary_key=True, autoincrement=True),
    Column("run_id", ID, ForeignKey("runs.id"), nullable=False, index=True),
    Column("at", BigInteger, nullable=False),
    Column("stage", NAME),
    Column("step", Integer),
    Column("metrics", JSON_VALUE, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", ID, primary_key=True),
    Column("name", NAME, nullable=False),
    Column("roles", JSON_VALUE, nullable=False),
    Column("secret_sha256", ID, nullable=False, unique=True),
    Column("hint", STATE, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

# `status` and `body` are NULL while the first request is under way; `holder` is the server that does it.
idempotency = Table(
    "idempotency",
    metadata,
    Column("scope", String(255), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("body_hash", ID, nullable=False),
    Column("status", Integer),
    Column("body", LargeBinary),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Column("holder", ID),
)

# What all servers on one database must agree on, such as the fingerprint of the key that end users are hashed with.
facts = Table(
    "facts",
    metadata,
    Column("name", ID, primary_key=True),
    Column("value", Text, nullable=False),
)

feedback_token_uses = Table(
    "feedback_token_uses",
    metadata,
    Column("token_id", ID, primary_key=True),
    Column("key", NAME, primary_key=True),
    Column("expires_at", BigInteger, nullable=False, index=True),
)

# Engine replicas that others run. `state`: active, draining, removed (kept, so that a seed stays removed).
replicas = Table(
    "replicas",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("url", String(512), nullable=False, unique=True),
    Column("state", STATE, nullable=False),
    Column("source", STATE, nullable=False),
    Column("added_at", BigInteger, nullable=False),
)

# Server processes on this database, and the versions that each uses on the replicas.
gateways = Table(
    "gateways",
    metadata,
    Column("id", ID, primary_key=True),
    Column("versions", JSON_VALUE, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", COUNTER, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    Column("actor", NAME, nullable=False),
    Column("action", NAME, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", JSON_VALUE, nullable=False),
    sqlite_autoincrement=True,
)
