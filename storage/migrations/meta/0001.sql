-- Nothing but time-ordered keys for messages: no table below has an index on (channel, seq).
CREATE TABLE shards (
    shard INTEGER PRIMARY KEY,
    term INTEGER NOT NULL,
    last_id INTEGER NOT NULL
) STRICT;

CREATE TABLE channels (
    channel INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    name TEXT NOT NULL,
    history INTEGER NOT NULL,
    join_policy INTEGER NOT NULL,
    low INTEGER NOT NULL,
    high INTEGER NOT NULL,
    epoch_start INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX channels_pair ON channels (low, high) WHERE low <> 0;

-- Apart from the channels and narrow, because every commit rewrites the pages of its channels' heads. One statement
-- each inserts and moves heads, and every check of a column costs on the commit path: so no NOT NULL, no STRICT, here
-- and in the entries.
CREATE TABLE heads (
    channel INTEGER PRIMARY KEY,
    epoch INTEGER,
    head INTEGER,
    ordinal INTEGER,
    message_id INTEGER,
    chain BLOB
);

CREATE TABLE members (
    channel INTEGER NOT NULL,
    user INTEGER NOT NULL,
    joined_seq INTEGER NOT NULL,
    role INTEGER NOT NULL,
    left_seq INTEGER NOT NULL,
    visible_from INTEGER NOT NULL,
    PRIMARY KEY (channel, user, joined_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE entries (
    message_id INTEGER PRIMARY KEY,
    channel INTEGER,
    epoch INTEGER,
    seq INTEGER,
    ordinal INTEGER,
    kind INTEGER,
    sender INTEGER,
    client_id BLOB,
    target INTEGER,
    hash BLOB
);

CREATE TABLE outbox (
    number INTEGER PRIMARY KEY,
    shard INTEGER NOT NULL,
    committed_ms INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;

CREATE TABLE users (
    user INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    flags INTEGER NOT NULL
) STRICT;

CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
