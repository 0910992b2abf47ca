-- Version 7 of the store, in the layout with TimescaleDB: native histograms. migrate_7.sql says how they are stored while they are hot.

-- The numbers of a native histogram, whose sum is the value. A stale marker has none.
ALTER TABLE {samples} ADD histogram double precision[];

-- Nobody asks these any more, and they know nothing of histograms.
DROP FUNCTION {sealed_last}(bigint[], timestamptz, timestamptz), {sealed_times}(bigint[], timestamptz, timestamptz);

-- A histogram of a thousand buckets does not fit a page. What does fit stays in its row.
ALTER TABLE {hot} ALTER value SET STORAGE EXTERNAL;
ALTER TABLE {hot} SET (toast_tuple_target = 8160);

-- What SQL users see of floats.
CREATE OR REPLACE VIEW {view} AS
    SELECT s."time", l.name, s.value, l.labels FROM {series} l JOIN {samples} s ON s.series_id = l.id WHERE l.id >= 0
    UNION ALL
    SELECT h."time", l.name, h.value, l.labels
    FROM (SELECT "time", unnest(series) AS series_id, unnest(value) AS value FROM {hot} WHERE array_ndims(value) = 1) h
    JOIN {series} l ON l.id = h.series_id WHERE l.id >= 0;
CREATE OR REPLACE VIEW {values} AS
    SELECT "time", value, series_id AS labels_id FROM {samples} WHERE series_id >= 0
    UNION ALL
    SELECT h."time", h.value, h.series_id
    FROM (SELECT "time", unnest(value) AS value, unnest(series) AS series_id FROM {hot} WHERE array_ndims(value) = 1) h
    WHERE h.series_id >= 0;
CREATE OR REPLACE FUNCTION {range}(metric text, matchers jsonb, start_time timestamptz, end_time timestamptz)
RETURNS TABLE ("time" timestamptz, value double precision, labels jsonb) LANGUAGE sql STABLE AS $body$
    WITH wanted AS MATERIALIZED (
        SELECT id, l.labels FROM {series} l WHERE id >= 0 AND name = metric AND l.labels @> matchers
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
