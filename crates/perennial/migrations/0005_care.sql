-- Since version 5 a snapshot's document may say when a drill proved it, and what the last one found wrong with it; one that
-- says nothing was never drilled.

-- The drills of each pod: when the last one had a result, and which snapshot was proven last, which may be gone since.
CREATE TABLE proofs (
    pod TEXT PRIMARY KEY,
    drilled_at TEXT NOT NULL,
    snapshot TEXT NOT NULL,
    proven_at TEXT NOT NULL
);

-- How often the schedule of drills was followed, and when it was last: what is due after a restart. One row.
CREATE TABLE drill_turns (
    id BIGINT PRIMARY KEY,
    turn BIGINT NOT NULL,
    began_at TEXT NOT NULL
);

-- When a drill of each pod was begun last, whatever became of it: whose turn is next.
CREATE TABLE drill_tries (
    pod TEXT PRIMARY KEY,
    tried_at TEXT NOT NULL
);
