-- Sealed samples as chunks: what such a store has beside schema.sql, and the functions of chunk.sql.

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
-- Of small chunks, which are put together; seal/merge.rs has the bound.
CREATE INDEX ON {sealed} (bucket, first) WHERE length < 64;

-- The partitions of {sealed}: no chunk reaches over their bounds. A NULL bound: everything before upper.
CREATE TABLE {segments} (
    relation name NOT NULL,
    lower timestamptz,
    upper timestamptz NOT NULL,
    -- Samples in its chunks.
    samples bigint NOT NULL DEFAULT 0
);

-- What the adapter asks of sealed samples, whatever the layout. Of one statement each: the server puts them in the place
-- of their call.

-- The last time between two, both included, of each of these series that has one there; more than one row for some. What
-- a chunk ends with is known without decoding it.
CREATE FUNCTION {sealed_last}(ids bigint[], from_time timestamptz, to_time timestamptz)
RETURNS TABLE (id bigint, last timestamptz) LANGUAGE sql STABLE PARALLEL SAFE AS $body$
    WITH wanted AS MATERIALIZED (
        SELECT u.id, u.id >> 5 AS bucket, (u.id & 31)::integer AS place FROM unnest(ids) AS u (id)
    )
    SELECT f.id, f.last FROM (
        SELECT w.id, CASE WHEN c.last <= to_time THEN c.last ELSE (
            SELECT max(d."time") FROM {decode}(c.times, c.places, c.data, c.floats, w.place) d WHERE d."time" <= to_time
        ) END AS last
        FROM wanted w JOIN {sealed} c ON c.bucket = w.bucket AND c.places >> w.place & 1 = 1
        WHERE c.last >= from_time AND c.first <= to_time
        AND c.first >= (SELECT coalesce(max(lower), '-infinity') FROM {segments} WHERE lower <= from_time)
    ) f WHERE f.last >= from_time
$body$;
-- All their times between two.
CREATE FUNCTION {sealed_times}(ids bigint[], from_time timestamptz, to_time timestamptz)
RETURNS TABLE (id bigint, "time" timestamptz) LANGUAGE sql STABLE PARALLEL SAFE AS $body$
    WITH wanted AS MATERIALIZED (
        SELECT u.id, u.id >> 5 AS bucket, (u.id & 31)::integer AS place FROM unnest(ids) AS u (id)
    )
    SELECT w.id, d."time"
    FROM wanted w JOIN {sealed} c ON c.bucket = w.bucket AND c.places >> w.place & 1 = 1
    CROSS JOIN LATERAL {decode}(c.times, c.places, c.data, c.floats, w.place) d
    WHERE c.last >= from_time AND c.first <= to_time AND d."time" >= from_time AND d."time" <= to_time
    AND c.first >= (SELECT coalesce(max(lower), '-infinity') FROM {segments} WHERE lower <= from_time)
$body$;
-- The series that have any.
CREATE FUNCTION {sealed_series}() RETURNS SETOF bigint LANGUAGE sql STABLE PARALLEL SAFE AS $body$
    SELECT DISTINCT bucket * 32 + place FROM {sealed}, generate_series(0, 31) place WHERE places >> place & 1 = 1
$body$;
-- How many segments there are, samples in them, and bytes of them.
CREATE FUNCTION {sealed_sizes}() RETURNS TABLE (segments bigint, samples bigint, bytes bigint)
LANGUAGE sql STABLE AS $body$
    SELECT count(*), coalesce(sum(s.samples), 0)::bigint, coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
    FROM {segments} s JOIN pg_class c ON c.relname = s.relation AND c.relnamespace = {schema:literal}::regnamespace
$body$;

-- What SQL users see.
CREATE VIEW {view} AS
    SELECT d."time", l.name, d.value, l.labels
    FROM {series} l JOIN {sealed} c ON c.bucket = l.id >> 5 AND c.places >> (l.id & 31)::integer & 1 = 1
    CROSS JOIN LATERAL {decode}(c.times, c.places, c.data, c.floats, (l.id & 31)::integer) d
    UNION ALL
    SELECT h."time", l.name, h.value, l.labels
    FROM (SELECT "time", unnest(series) AS series_id, unnest(value) AS value FROM {hot}) h JOIN {series} l ON l.id = h.series_id;
CREATE VIEW {values} AS
    SELECT d."time", d.value, l.id AS labels_id
    FROM {series} l JOIN {sealed} c ON c.bucket = l.id >> 5 AND c.places >> (l.id & 31)::integer & 1 = 1
    CROSS JOIN LATERAL {decode}(c.times, c.places, c.data, c.floats, (l.id & 31)::integer) d
    UNION ALL
    SELECT "time", unnest(value), unnest(series) FROM {hot};
-- The conditions on first and last leave out segments and chunks beside the range. The array of buckets leads by the index to
-- the chunks: for what the planner takes for a hundred series, a join alone would read all the chunks of a segment. The
-- conditions on hot rows leave out rows beside the series by a glance; looking into the others is cheap for the few series of
-- a panel, and for many a join is.
CREATE FUNCTION {range}(metric text, matchers jsonb, start_time timestamptz, end_time timestamptz)
RETURNS TABLE ("time" timestamptz, value double precision, labels jsonb) LANGUAGE sql STABLE AS $body$
    WITH wanted AS MATERIALIZED (
        SELECT id, id >> 5 AS bucket, (id & 31)::integer AS place, l.labels
        FROM {series} l WHERE name = metric AND l.labels @> matchers
    ), found AS (
        SELECT w.id, d."time", d.value, w.labels
        FROM wanted w JOIN {sealed} c ON c.bucket = w.bucket AND c.places >> w.place & 1 = 1
        CROSS JOIN LATERAL {decode}(c.times, c.places, c.data, c.floats, w.place) d
        WHERE c.bucket = ANY (ARRAY(SELECT DISTINCT bucket FROM wanted)) AND c.last >= start_time AND c.first <= end_time
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
COMMENT ON VIEW {values} IS 'Every sample with the id of its series (prometheus-postgresql-adapter)';
COMMENT ON FUNCTION {range}(text, jsonb, timestamptz, timestamptz) IS
    'Samples of one metric between two times, both included, whose labels contain matchers (prometheus-postgresql-adapter)';
