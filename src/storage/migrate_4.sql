-- Version 4 of the store, in both layouts: how far each adapter has observed, so that sealing leaves to them what they have yet to see.

-- The row of an adapter is that of a sender 0 too: a table of its own would take 57 kB.
ALTER TABLE {senders} ADD observed_at timestamptz, ADD observed pg_snapshot;
-- An adapter that has ended no longer renews its row. The position: the transactions whose rows it has seen.
CREATE VIEW {observers} AS
    SELECT name AS adapter, observed_at, observed AS position FROM {senders} WHERE group_name = 'observers';
