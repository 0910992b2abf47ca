-- Version 3 of the store, in both layouts: fewer tables and indexes, and a look for samples that other adapters have stored of the same
-- senders. (In the layout of chunks chunk.sql goes before: it decodes rounded scales too.)

-- However little is in it, a table takes 40 kB with its maps, and an index 16 kB. So what sealing has taken away of the hot rows is the
-- row of a sender 0, who sends nothing, and no table of its own.
ALTER TABLE {senders} ADD sealed_to pg_snapshot, ADD sealed_newest timestamptz;
INSERT INTO {senders} (sender_no, group_name, name, sealed_to, sealed_newest) OVERRIDING SYSTEM VALUE
    SELECT 0, 'sealed', '', snapshot, newest FROM {sealed_to};
DROP TABLE {sealed_to};
CREATE VIEW {sealed_to} AS
    SELECT sealed_to AS snapshot, sealed_newest AS newest FROM {senders} WHERE group_name = 'sealed' AND name = '';

-- Senders are looked for by their names, and a sequence gives their numbers.
DO $body$
DECLARE
    dropped name;
BEGIN
    FOR dropped IN SELECT conname FROM pg_constraint WHERE conrelid = {senders:literal}::regclass AND contype IN ('p', 'u') LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', {senders:literal}::regclass, dropped);
    END LOOP;
END
$body$;
ALTER TABLE {senders} ADD PRIMARY KEY (group_name, name);

-- True if one of the samples that this transaction has stored of these senders is in a row that another adapter has committed since
-- the store was last observed, or if such a row may have been sealed. Its transaction lies between two of the adapter's own: for
-- each such gap its sender, and the ids around it. A function, because its plan is kept: planning takes longer than looking. The rows are found
-- by the index on sender and transaction, even where the planner takes the table for a small one.
CREATE FUNCTION {stored_by_others}(of_senders integer[], gap_after xid8[], gap_before xid8[], observed pg_snapshot) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET jit = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $body$
BEGIN
    RETURN EXISTS (
        SELECT FROM {sealed_to} WHERE pg_snapshot_xmax(snapshot) <= pg_snapshot_xmax(pg_current_snapshot())
            AND (pg_snapshot_xmax(snapshot) > pg_snapshot_xmax(observed)
                OR EXISTS (SELECT FROM pg_snapshot_xip(observed) AS xid WHERE pg_visible_in_snapshot(xid, snapshot)))
    ) OR EXISTS (
        WITH other AS MATERIALIZED (
            SELECT h.sender, h."time", h.series FROM unnest(of_senders, gap_after, gap_before) AS gap (sender, after, before)
            JOIN {hot} h ON h.sender = gap.sender AND h.xid > gap.after AND h.xid < gap.before
            WHERE NOT pg_visible_in_snapshot(h.xid, observed)
        ), own AS MATERIALIZED (
            SELECT sender, "time", series FROM {hot} WHERE EXISTS (SELECT FROM other)
                AND sender = ANY (of_senders) AND xid = pg_current_xact_id() AND "time" = ANY (ARRAY(SELECT "time" FROM other))
        )
        SELECT sender, "time", unnest(series) FROM own INTERSECT SELECT sender, "time", unnest(series) FROM other
    );
END
$body$;
