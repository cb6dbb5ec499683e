-- How active members are: see the crate `activity`. `seq` is the newest entry that is counted in it.
CREATE TABLE activities (
    channel INTEGER NOT NULL,
    user INTEGER NOT NULL,
    fast INTEGER NOT NULL,
    slow INTEGER NOT NULL,
    acted INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (channel, user)
) STRICT, WITHOUT ROWID;
