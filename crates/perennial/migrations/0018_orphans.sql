-- Pods on the engine that are in no database, as far as this one knows.
CREATE TABLE orphans (
    pod TEXT PRIMARY KEY,
    first_seen_at TEXT NOT NULL,
    -- Since when somebody wants it gone, who, and until when it is kept all the same; empty: nobody asked.
    quarantined_at TEXT NOT NULL DEFAULT '',
    quarantined_by TEXT NOT NULL DEFAULT '',
    kept_until TEXT NOT NULL DEFAULT '',
    -- 1: its end has begun.
    ending BIGINT NOT NULL DEFAULT 0
);
