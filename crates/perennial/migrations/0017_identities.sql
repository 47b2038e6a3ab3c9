-- Who a user is to the OpenID provider: its address, a space, and what it calls them. Empty: nobody yet.
ALTER TABLE users ADD COLUMN identity TEXT NOT NULL DEFAULT '';
CREATE UNIQUE INDEX users_identity ON users (identity) WHERE identity <> '';
