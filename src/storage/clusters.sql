-- The election by labels: what its adapters tell each other. Made once an adapter finds leaders so.

-- A row an adapter: what it last heard of leading replicas, an element a cluster. Worth nothing once the server has crashed.
CREATE UNLOGGED TABLE {reports} (
    adapter uuid PRIMARY KEY,
    reported_at timestamptz NOT NULL,
    -- The terms that this adapter knows, and whether it has stored what it held of their leading replicas: for whoever looks on.
    tokens uuid[] NOT NULL,
    begun boolean[] NOT NULL,
    -- When it heard these, if it has in that term; and after how many seconds of silence they are to be followed
    -- by others.
    heard timestamptz[] NOT NULL,
    patience double precision[] NOT NULL
);

-- Lets other replicas lead: in each of these groups if its token is still the one given, no adapter has heard the leading
-- replica for so many seconds, every adapter that lives has told within so many whether it has (NULL: any time), no order
-- forbids it, and no write of its is under way. A group that is being written to or taken over just now is left for the next
-- try. Returns the groups that have a new term. Needs READ COMMITTED: what a statement here sees is what was committed once the
-- locks were granted.
CREATE FUNCTION {take_over}(
    of_groups integer[], with_tokens uuid[], replicas text[], silent_seconds double precision[],
    told_seconds double precision[], lives interval
) RETURNS integer[] LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
    locked integer[];
    wanted record;
    taken integer[] := ARRAY[]::integer[];
BEGIN
    locked := ARRAY(
        SELECT of_group FROM (SELECT DISTINCT unnest(of_groups) AS of_group ORDER BY 1) g
        WHERE pg_catalog.pg_try_advisory_xact_lock({leader:literal}::regclass::oid::integer, of_group)
    );
    FOR wanted IN
        SELECT w.* FROM unnest(of_groups, with_tokens, replicas, silent_seconds, told_seconds)
            AS w (of_group, with_token, replica, silent, told)
        JOIN {leader} l ON l.group_no = w.of_group
        LEFT JOIN (
            SELECT u.token, max(u.heard) AS at FROM {reports} r, unnest(r.tokens, r.heard) AS u (token, heard)
            WHERE u.token = ANY (with_tokens) AND u.heard <= clock_timestamp() GROUP BY 1
        ) h ON h.token = l.token
        WHERE w.of_group = ANY (locked) AND l.token IS NOT DISTINCT FROM w.with_token
            AND (h.at IS NULL OR h.at <= clock_timestamp() - make_interval(secs => w.silent))
            AND NOT EXISTS (
                SELECT FROM {reports} r WHERE r.reported_at > clock_timestamp() - lives
                    AND r.reported_at < clock_timestamp() - make_interval(secs => w.told)
            )
            AND w.replica <> ALL (l.held_out)
            AND (l.successor IS NULL OR l.successor = w.replica
                OR l.successor_until NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '5 minutes')
        -- As adapters ask for numbers of senders, lest two transactions that add some wait for each other.
        ORDER BY l.group_name FOR UPDATE OF l
    LOOP
        PERFORM {raise}(wanted.of_group, wanted.replica);
        taken := taken || wanted.of_group;
    END LOOP;
    RETURN taken;
END
$body$;
