-- Sealed samples in a hypertable of TimescaleDB: what such a store has beside schema.sql. {timescaledb} is the schema that
-- the extension is in; nothing of it is used but what its documentation has.

CREATE TABLE {samples} (
    "time" timestamptz NOT NULL,
    series_id bigint NOT NULL,
    value double precision NOT NULL
);
-- Of two samples of one series and time the first counts.
CREATE UNIQUE INDEX ON {samples} (series_id, "time");
SELECT {timescaledb}.create_hypertable({samples:literal}, 'time', create_default_indexes => false);

-- Drops what is older, by whole segments; their names.
CREATE FUNCTION {drop_older}(than timestamptz) RETURNS SETOF text LANGUAGE sql VOLATILE AS $body$
    SELECT {timescaledb}.drop_chunks({samples:literal}::regclass, than)
$body$;

-- What the adapter asks of sealed samples, whatever the layout; segments.sql has the others. Of one statement each: the
-- server puts them in the place of their call.

-- The last time between two, both included, of each of these series that has one there.
CREATE FUNCTION {sealed_last}(ids bigint[], from_time timestamptz, to_time timestamptz)
RETURNS TABLE (id bigint, last timestamptz) LANGUAGE sql STABLE PARALLEL SAFE AS $body$
    SELECT s.series_id, max(s."time") FROM {samples} s
    WHERE s.series_id = ANY (ids) AND s."time" >= from_time AND s."time" <= to_time GROUP BY s.series_id
$body$;
-- All their times between two.
CREATE FUNCTION {sealed_times}(ids bigint[], from_time timestamptz, to_time timestamptz)
RETURNS TABLE (id bigint, "time" timestamptz) LANGUAGE sql STABLE PARALLEL SAFE AS $body$
    SELECT s.series_id, s."time" FROM {samples} s
    WHERE s.series_id = ANY (ids) AND s."time" >= from_time AND s."time" <= to_time
$body$;
-- The series that have any: a glance at each, for the samples are many more.
CREATE FUNCTION {sealed_series}() RETURNS SETOF bigint LANGUAGE sql STABLE PARALLEL SAFE AS $body$
    SELECT l.id FROM {series} l WHERE EXISTS (SELECT FROM {samples} s WHERE s.series_id = l.id)
$body$;
-- How many segments there are, samples in them, about, and bytes of them.
CREATE FUNCTION {sealed_sizes}() RETURNS TABLE (segments bigint, samples bigint, bytes bigint)
LANGUAGE sql STABLE AS $body$
    SELECT (SELECT count(*) FROM {timescaledb}.show_chunks({samples:literal}::regclass)),
        {timescaledb}.approximate_row_count({samples:literal}::regclass),
        {timescaledb}.hypertable_size({samples:literal}::regclass)
$body$;

-- What SQL users see.
CREATE VIEW {view} AS
    SELECT s."time", l.name, s.value, l.labels FROM {series} l JOIN {samples} s ON s.series_id = l.id
    UNION ALL
    SELECT h."time", l.name, h.value, l.labels
    FROM (SELECT "time", unnest(series) AS series_id, unnest(value) AS value FROM {hot}) h JOIN {series} l ON l.id = h.series_id;
CREATE VIEW {values} AS
    SELECT "time", value, series_id AS labels_id FROM {samples}
    UNION ALL
    SELECT "time", unnest(value), unnest(series) FROM {hot};
-- As in segments.sql, which says why of hot rows.
CREATE FUNCTION {range}(metric text, matchers jsonb, start_time timestamptz, end_time timestamptz)
RETURNS TABLE ("time" timestamptz, value double precision, labels jsonb) LANGUAGE sql STABLE AS $body$
    WITH wanted AS MATERIALIZED (
        SELECT id, l.labels FROM {series} l WHERE name = metric AND l.labels @> matchers
    ), found AS (
        SELECT w.id, s."time", s.value, w.labels
        FROM wanted w JOIN {samples} s ON s.series_id = w.id
        WHERE s."time" >= start_time AND s."time" <= end_time
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
