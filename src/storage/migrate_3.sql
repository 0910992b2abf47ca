-- Version 3 of the store, in both layouts: a look for samples that other adapters have stored of the same senders.

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
