-- Tries to sign in that are not followed by one that was good. The name '' is for all that are nobody's.
CREATE TABLE sign_ins (
    user_name TEXT PRIMARY KEY,
    tries BIGINT NOT NULL,
    -- Nobody gets in before that; empty: now.
    locked_until TEXT NOT NULL
);
