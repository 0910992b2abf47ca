-- The election by labels: what its adapters tell each other, and where terms begin. Made once an adapter finds leaders so.

-- A row an adapter: what it last heard of leading replicas, an element a cluster. Worth nothing once the server has crashed.
CREATE UNLOGGED TABLE {reports} (
    adapter uuid PRIMARY KEY,
    reported_at timestamptz NOT NULL,
    groups integer[] NOT NULL,
    -- The term this adapter knows, and whether it has stored what it held of the leading replica.
    tokens uuid[] NOT NULL,
    begun boolean[] NOT NULL,
    heard timestamptz[] NOT NULL,
    -- Since when it has been silent, if it may have lost what it had not sent: whoever has another replica is to let it lead.
    doubted timestamptz[] NOT NULL,
    -- The newest sample stored, the largest lag seen lately, the earliest sample that is under way.
    newest timestamptz[] NOT NULL,
    lag_ms bigint[] NOT NULL,
    pending timestamptz[] NOT NULL
);

-- Where a cluster's term begins: behind these times in these series, behind "others" in all others.
CREATE TABLE {cuts} (
    group_no integer PRIMARY KEY,
    token uuid NOT NULL,
    others timestamptz NOT NULL,
    series bigint[] NOT NULL,
    last timestamptz[] NOT NULL
);

-- Lets other replicas lead: in each of these groups if its token is still the one given, no adapter has heard the leading
-- replica for so many seconds, every adapter that lives has stored what it held of it, no order forbids it, and no write of its
-- is under way. A
-- group that is being written to or taken over just now is left for the next try. Returns the groups that have a new term.
-- Needs READ COMMITTED: what a statement here sees is what was committed once the locks were granted. Without JIT: to compile
-- a plan over many segments would take longer than all else here.
CREATE FUNCTION {take_over}(
    of_groups integer[], clusters text[], with_tokens uuid[], replicas text[], silent_seconds double precision[],
    watermarks timestamptz[], behind_ms bigint[], cluster_label text, looked_back interval, unsure interval, lives interval
) RETURNS integer[] LANGUAGE plpgsql VOLATILE SET jit = off AS $body$
DECLARE
    taken integer[];
BEGIN
    taken := ARRAY(
        SELECT of_group FROM (SELECT DISTINCT unnest(of_groups) AS of_group ORDER BY 1) g
        WHERE pg_catalog.pg_try_advisory_xact_lock({leader:literal}::regclass::oid::integer, of_group)
    );
    WITH wanted AS (
        SELECT * FROM unnest(of_groups, with_tokens, replicas, silent_seconds, watermarks)
            AS w (of_group, with_token, replica, silent, passed) WHERE of_group = ANY (taken)
    ), heard AS (
        SELECT u.token, max(u.heard) AS at FROM {reports} r, unnest(r.tokens, r.heard) AS u (token, heard)
        WHERE u.token = ANY (with_tokens) GROUP BY 1
    ), beginning AS (
        SELECT u.of_group FROM {reports} r, unnest(r.groups, r.tokens, r.begun) AS u (of_group, token, begun)
        JOIN wanted w ON w.of_group = u.of_group
        WHERE r.reported_at > clock_timestamp() - lives AND NOT (u.begun AND u.token = w.with_token)
    ), raised AS (
        UPDATE {leader} new SET term = new.term + 1, token = pg_catalog.gen_random_uuid(), holder = w.replica,
            heartbeat = clock_timestamp(), watermark = w.passed, successor = NULL, successor_until = NULL,
            holes = old.holes * tstzmultirange(tstzrange(clock_timestamp() - looked_back, NULL))
                + tstzmultirange(tstzrange(
                    coalesce(w.passed, (SELECT max(lower(hole)) FROM unnest(old.holes) hole), clock_timestamp() - looked_back),
                    clock_timestamp() + unsure)),
            hole_clock_least_ms = CASE WHEN old.holes && tstzrange(clock_timestamp() - looked_back, NULL) THEN old.hole_clock_least_ms END,
            hole_clock_most_ms = CASE WHEN old.holes && tstzrange(clock_timestamp() - looked_back, NULL) THEN old.hole_clock_most_ms END
        FROM {leader} old JOIN wanted w ON w.of_group = old.group_no LEFT JOIN heard h ON h.token = old.token
        WHERE new.group_no = old.group_no AND old.token IS NOT DISTINCT FROM w.with_token
            AND (h.at IS NULL OR h.at <= clock_timestamp() - make_interval(secs => w.silent))
            AND NOT EXISTS (SELECT FROM beginning b WHERE b.of_group = old.group_no)
            AND w.replica <> ALL (old.held_out)
            AND (old.successor IS NULL OR old.successor = w.replica OR old.successor_until <= clock_timestamp())
        RETURNING new.group_no
    )
    SELECT array_agg(group_no) INTO taken FROM raised;
    IF taken IS NULL THEN
        RETURN ARRAY[]::integer[];
    END IF;
    WITH begun AS MATERIALIZED (
        SELECT w.of_group, l.token, w.passed, w.behind, coalesce(w.passed, clock_timestamp() - looked_back) AS since, s.id
        FROM unnest(of_groups, clusters, watermarks, behind_ms) AS w (of_group, cluster, passed, behind)
        JOIN {leader} l ON l.group_no = w.of_group
        LEFT JOIN {series} s ON s.labels @> jsonb_build_object(cluster_label, w.cluster)
        WHERE w.of_group = ANY (taken)
    ), bounds AS (
        SELECT min(since) AS lower, clock_timestamp() + interval '1 day' AS upper, array_agg(id) FILTER (WHERE id IS NOT NULL) AS ids
        FROM begun
    ), found AS (
        SELECT l.id, l.last FROM bounds b, {sealed_last}(b.ids, b.lower, b.upper) l
        UNION ALL
        SELECT h.id, h."time" FROM (
            SELECT "time", unnest(series) AS id FROM {hot} WHERE "time" >= (SELECT lower FROM bounds)
        ) h WHERE EXISTS (SELECT FROM begun WHERE begun.id = h.id)
    ), lasts AS (
        SELECT id, max(last) AS last FROM found GROUP BY id
    )
    INSERT INTO {cuts} AS cut (group_no, token, others, series, last)
    SELECT b.of_group, b.token, coalesce(b.passed, '-infinity'),
        coalesce(array_agg(l.id ORDER BY l.id) FILTER (WHERE l.last > b.since), ARRAY[]::bigint[]),
        coalesce(array_agg(l.last + make_interval(secs => greatest(b.behind, 0) / 1000.0) ORDER BY l.id)
            FILTER (WHERE l.last > b.since), ARRAY[]::timestamptz[])
    FROM begun b LEFT JOIN lasts l ON l.id = b.id
    GROUP BY b.of_group, b.token, b.passed
    ON CONFLICT (group_no) DO UPDATE SET token = excluded.token, others = excluded.others, series = excluded.series,
        last = excluded.last;
    RETURN taken;
END
$body$;
