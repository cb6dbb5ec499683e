-- One row per transaction, of all its shards: an entry's channel names its shard.
ALTER TABLE outbox DROP COLUMN shard;
