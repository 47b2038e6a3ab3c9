-- Rights to pods of plans. An empty text is "none" and "not yet" throughout.
CREATE TABLE subscriptions (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    service TEXT NOT NULL,
    plan TEXT NOT NULL,
    pod TEXT NOT NULL,
    state TEXT NOT NULL,
    version BIGINT NOT NULL,
    created_at TEXT NOT NULL,
    expires_at TEXT NOT NULL,
    ended_at TEXT NOT NULL,
    -- What is done when it is brought back: start, leave.
    resume TEXT NOT NULL,
    trash_at TEXT NOT NULL,
    warned BIGINT NOT NULL,
    purge_at TEXT NOT NULL,
    -- Whether its pod is gone for good.
    purged BIGINT NOT NULL,
    -- When something is due by itself.
    due_at TEXT NOT NULL
);
CREATE UNIQUE INDEX subscriptions_name ON subscriptions (tenant, name) WHERE purged = 0;
CREATE UNIQUE INDEX subscriptions_pod ON subscriptions (pod);
CREATE INDEX subscriptions_due ON subscriptions (due_at) WHERE due_at <> '';
