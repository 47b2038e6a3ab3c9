-- Services of the catalogue that were changed over the API; they win over files.
CREATE TABLE services (
    name TEXT PRIMARY KEY,
    -- Names the definition: another one has another.
    revision TEXT NOT NULL,
    -- The definition: a JSON document as the API takes it.
    definition TEXT NOT NULL,
    -- Who changed it last, and when.
    actor TEXT NOT NULL,
    changed_at TEXT NOT NULL
);
