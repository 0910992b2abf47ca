-- Version 4 of the store, in both layouts: how far each adapter has observed, so that sealing leaves to them what they have yet to see.

-- A row an adapter. An adapter that has ended, or that belongs to another server, no longer renews its row. Each adapter writes its
-- own row only, so there is no key.
CREATE UNLOGGED TABLE {observers} (
    adapter uuid NOT NULL,
    observed_at timestamptz NOT NULL,
    -- The transactions whose rows it has seen.
    position pg_snapshot NOT NULL
) WITH (fillfactor = 50);
ALTER TABLE {observers} ALTER position SET STORAGE PLAIN;
