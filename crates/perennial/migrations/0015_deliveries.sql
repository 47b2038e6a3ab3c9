-- What people are told: a row for each message and each place it goes to. An empty text is "none" and "not yet" throughout.
CREATE TABLE deliveries (
    id TEXT PRIMARY KEY,
    event BIGINT NOT NULL,
    kind TEXT NOT NULL,
    tenant TEXT NOT NULL,
    pod TEXT NOT NULL,
    target TEXT NOT NULL,
    created_at TEXT NOT NULL,
    -- pending, sent, failed.
    state TEXT NOT NULL,
    tries BIGINT NOT NULL,
    next_at TEXT NOT NULL,
    ended_at TEXT NOT NULL,
    problem TEXT NOT NULL
);
CREATE INDEX deliveries_next ON deliveries (target, next_at) WHERE state = 'pending';
CREATE INDEX deliveries_ended ON deliveries (ended_at) WHERE state <> 'pending';
CREATE INDEX deliveries_same ON deliveries (target, kind, pod, created_at);
-- Up to which event people were told. What happened before this version is not told.
INSERT INTO counters (name, value) SELECT 'told', value FROM counters WHERE name = 'event';

-- When it was looked last for what has ended, and until when nothing is destroyed; seconds since 1970, 0: never.
INSERT INTO counters (name, value) VALUES ('kept', 0);
INSERT INTO counters (name, value) VALUES ('held', 0);
