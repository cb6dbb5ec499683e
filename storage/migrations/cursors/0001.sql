CREATE TABLE cursors (
    channel INTEGER NOT NULL,
    user INTEGER NOT NULL,
    delivered INTEGER NOT NULL,
    read INTEGER NOT NULL,
    read_ordinal INTEGER NOT NULL,
    PRIMARY KEY (channel, user)
) STRICT, WITHOUT ROWID;

CREATE TABLE positions (
    user INTEGER NOT NULL,
    device INTEGER NOT NULL,
    channel INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (user, device, channel)
) STRICT, WITHOUT ROWID;

CREATE TABLE devices (
    user INTEGER NOT NULL,
    device INTEGER NOT NULL,
    name TEXT NOT NULL,
    generation INTEGER NOT NULL,
    acks_confirmed INTEGER NOT NULL,
    seen_ms INTEGER NOT NULL,
    PRIMARY KEY (user, device)
) STRICT, WITHOUT ROWID;
