-- What version 1 of the store consists of. {x} is filled in with the qualified name of the store's x.

CREATE TABLE {series} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The first half of the SHA-256 of the label set: a label set of any size has a small unique key.
    key uuid NOT NULL UNIQUE,
    name text NOT NULL,
    labels jsonb NOT NULL,
    -- When nothing stored referred to it any more; NULL again once somebody asks for it.
    ended_at timestamptz
);
-- Hash and jsonb_path_ops indexes take values of any length.
CREATE INDEX ON {series} USING hash (name) WITH (fillfactor = 100);
-- A list of entries to be sorted in would stay as large as it ever was.
CREATE INDEX ON {series} USING gin (labels jsonb_path_ops) WITH (fastupdate = off);
CREATE INDEX ON {series} (ended_at) WHERE ended_at IS NOT NULL;

-- Samples as they came: one row for all series scraped at one time, so that a sample costs 16 bytes and no index.
-- A reader reads all of it, which sealing keeps small. Two full rows fill a page; nothing is compressed or moved out.
CREATE TABLE {hot} (
    "time" timestamptz NOT NULL,
    -- Ascending.
    series bigint[] NOT NULL,
    value double precision[] NOT NULL,
    -- In the order of storing: of two samples of one series and time the first counts.
    no bigint GENERATED ALWAYS AS IDENTITY
) WITH (autovacuum_enabled = off); -- the sealing job does it, whenever it has emptied it
ALTER TABLE {hot} ALTER series SET STORAGE PLAIN, ALTER value SET STORAGE PLAIN;

-- Sealed samples: a row has those of some of up to 32 series (a bucket, id >> 5) that share all their times.
-- storage/chunk.rs says how they are encoded. No constraint spans buckets: distributable by them.
CREATE TABLE {sealed} (
    bucket bigint NOT NULL,
    first timestamptz NOT NULL,
    last timestamptz NOT NULL,
    -- A bit for each series.
    places integer NOT NULL,
    -- How many times there are.
    length smallint NOT NULL,
    times bit varying NOT NULL,
    data bit varying NOT NULL,
    floats double precision[]
) PARTITION BY RANGE (first);
-- In the row, where it is read at once, unless the row would not fit a page.
ALTER TABLE {sealed} ALTER times SET STORAGE MAIN, ALTER data SET STORAGE MAIN, ALTER floats SET STORAGE MAIN;
CREATE INDEX ON {sealed} (bucket, last);

-- The partitions of {sealed}: no chunk reaches over their bounds. A NULL bound: everything before upper.
CREATE TABLE {segments} (
    relation name NOT NULL,
    lower timestamptz,
    upper timestamptz NOT NULL,
    -- Samples in its chunks.
    samples bigint NOT NULL DEFAULT 0
);

-- Requests that are stored: a retry finds itself here.
CREATE TABLE {requests} (
    key uuid PRIMARY KEY,
    stored_at timestamptz NOT NULL DEFAULT now()
);

-- One row a group: who leads, and the token that its writes must show.
CREATE TABLE {leader} (
    group_no integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_name text NOT NULL UNIQUE,
    term bigint NOT NULL DEFAULT 0,
    token uuid,
    holder text,
    heartbeat timestamptz,
    -- Every sample up to here is committed; a standby may forget it.
    watermark timestamptz,
    -- How far the clocks of those are ahead of the server's by which what is stored last may have been stored: of the
    -- leader alone once every series goes on under it, until then of those before it too.
    clock_offsets_ms bigint[],
    -- Times that each change of leader leaves in doubt, from the last watermark to when the next leader is sent everything:
    -- what it had not been sent before, nobody may have stored. Whoever has been sent samples of a hole compares them with
    -- what is stored before it forgets them.
    holes tstzmultirange NOT NULL DEFAULT tstzmultirange(),
    -- Of those who stored around the holes, how far the clocks are ahead of the server's.
    hole_clock_least_ms bigint,
    hole_clock_most_ms bigint
) WITH (fillfactor = 50);

-- The fence. The lock waits for a new leader that is raising the term; the comparison is a statement of its own, so
-- it sees the term as it is once the lock is granted. Needs READ COMMITTED.
CREATE FUNCTION {fence}(of_group integer, with_token uuid) RETURNS void LANGUAGE plpgsql VOLATILE AS $body$
BEGIN
    PERFORM pg_catalog.pg_advisory_xact_lock_shared({leader:literal}::regclass::oid::integer, of_group);
    PERFORM 1 FROM {leader} WHERE group_no = of_group AND token = with_token;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another adapter has begun a newer term' USING ERRCODE = 'PF001';
    END IF;
END
$body$;

-- The same for the writes of several groups in one transaction: of these tokens, those that are in force. A group whose
-- term is being raised is not waited for, lest it hold the others up.
CREATE FUNCTION {fences}(of_groups integer[], with_tokens uuid[]) RETURNS uuid[] LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
    of_group integer;
    shared integer[];
BEGIN
    FOREACH of_group IN ARRAY of_groups LOOP
        IF pg_catalog.pg_try_advisory_xact_lock_shared({leader:literal}::regclass::oid::integer, of_group) THEN
            shared := shared || of_group;
        END IF;
    END LOOP;
    RETURN ARRAY(SELECT token FROM {leader} WHERE group_no = ANY (shared) AND token = ANY (with_tokens));
END
$body$;

-- What SQL users see.
CREATE VIEW {view} AS
    SELECT d."time", l.name, d.value, l.labels
    FROM {series} l JOIN {sealed} c ON c.bucket = l.id >> 5 AND c.places >> (l.id & 31)::integer & 1 = 1
    CROSS JOIN LATERAL {decode}(c.times, c.places, c.data, c.floats, (l.id & 31)::integer) d
    UNION ALL
    SELECT h."time", l.name, h.value, l.labels
    FROM (SELECT "time", unnest(series) AS series_id, unnest(value) AS value FROM {hot}) h JOIN {series} l ON l.id = h.series_id;
CREATE VIEW {labels} AS SELECT id, name AS metric_name, labels FROM {series};
CREATE VIEW {values} AS
    SELECT d."time", d.value, l.id AS labels_id
    FROM {series} l JOIN {sealed} c ON c.bucket = l.id >> 5 AND c.places >> (l.id & 31)::integer & 1 = 1
    CROSS JOIN LATERAL {decode}(c.times, c.places, c.data, c.floats, (l.id & 31)::integer) d
    UNION ALL
    SELECT "time", unnest(value), unnest(series) FROM {hot};
-- The conditions on first and last leave out segments and chunks beside the range. Those on hot rows leave out rows
-- beside the series by a glance; looking into the others is cheap for the few series of a panel, and for many a join is.
CREATE FUNCTION {range}(metric text, matchers jsonb, start_time timestamptz, end_time timestamptz)
RETURNS TABLE ("time" timestamptz, value double precision, labels jsonb) LANGUAGE sql STABLE AS $body$
    WITH wanted AS MATERIALIZED (
        SELECT id, id >> 5 AS bucket, (id & 31)::integer AS place, l.labels
        FROM {series} l WHERE name = metric AND l.labels @> matchers
    ), found AS (
        SELECT w.id, d."time", d.value, w.labels
        FROM wanted w JOIN {sealed} c ON c.bucket = w.bucket AND c.places >> w.place & 1 = 1
        CROSS JOIN LATERAL {decode}(c.times, c.places, c.data, c.floats, w.place) d
        WHERE c.last >= start_time AND c.first <= end_time
        AND c.first >= (SELECT coalesce(max(lower), '-infinity') FROM {segments} WHERE lower <= start_time)
        AND d."time" >= start_time AND d."time" <= end_time
        UNION ALL
        SELECT w.id, h."time", h.value, w.labels
        FROM (SELECT "time", unnest(series) AS id, unnest(value) AS value FROM {hot}
              WHERE "time" >= start_time AND "time" <= end_time
              AND series[1] <= (SELECT max(wanted.id) FROM wanted)
              AND series[cardinality(series)] >= (SELECT min(wanted.id) FROM wanted)
              AND ((SELECT count(*) FROM wanted) > 8 OR series && (SELECT array_agg(wanted.id) FROM wanted))) h
        JOIN wanted w ON w.id = h.id
    )
    SELECT found."time", found.value, found.labels FROM found ORDER BY found.id, found."time"
$body$;

COMMENT ON VIEW {view} IS 'Every sample with its labels (prometheus-postgresql-adapter)';
COMMENT ON VIEW {labels} IS 'Every series: id, metric name, labels (prometheus-postgresql-adapter)';
COMMENT ON VIEW {values} IS 'Every sample with the id of its series (prometheus-postgresql-adapter)';
COMMENT ON FUNCTION {range}(text, jsonb, timestamptz, timestamptz) IS
    'Samples of one metric between two times, both included, whose labels contain matchers (prometheus-postgresql-adapter)';
