-- Administrators: the one-time links that make the first one, and the keys that sign what is sent to others' servers.
CREATE TABLE admin_links (
    hash BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    made_by INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE webhook_keys (
    created_ms INTEGER NOT NULL,
    kid TEXT NOT NULL,
    pkcs8 BLOB NOT NULL,
    ends_ms INTEGER NOT NULL,
    PRIMARY KEY (created_ms, kid)
) STRICT, WITHOUT ROWID;

-- 8 is the flag ADMINISTRATOR: they are few, and asked for by a page that anybody may open.
CREATE INDEX users_administrators ON users (user) WHERE flags & 8 <> 0;
