-- Version 7 of the store, in the layout of chunks: native histograms. Their series have negative ids. A hot row of one histogram
-- has the list of its numbers, in two dimensions. The files histograms_*.sql have what SQL users see of them.

-- Nobody asks these any more, and they know nothing of histograms.
DROP FUNCTION {sealed_last}(bigint[], timestamptz, timestamptz), {sealed_times}(bigint[], timestamptz, timestamptz);

-- A histogram of a thousand buckets does not fit a page. What does fit stays in its row.
ALTER TABLE {hot} ALTER value SET STORAGE EXTERNAL;
ALTER TABLE {hot} SET (toast_tuple_target = 8160);

-- What SQL users see of floats.
CREATE OR REPLACE VIEW {view} AS
    SELECT d."time", l.name, d.value, l.labels
    FROM {series} l JOIN {sealed} c ON c.bucket = l.id >> 5 AND c.places >> (l.id & 31)::integer & 1 = 1
    CROSS JOIN LATERAL {decode}(c.times, c.places, c.data, c.floats, (l.id & 31)::integer) d
    WHERE l.id >= 0
    UNION ALL
    SELECT h."time", l.name, h.value, l.labels
    FROM (SELECT "time", unnest(series) AS series_id, unnest(value) AS value FROM {hot} WHERE array_ndims(value) = 1) h
    JOIN {series} l ON l.id = h.series_id WHERE l.id >= 0;
CREATE OR REPLACE VIEW {values} AS
    SELECT d."time", d.value, l.id AS labels_id
    FROM {series} l JOIN {sealed} c ON c.bucket = l.id >> 5 AND c.places >> (l.id & 31)::integer & 1 = 1
    CROSS JOIN LATERAL {decode}(c.times, c.places, c.data, c.floats, (l.id & 31)::integer) d
    WHERE l.id >= 0
    UNION ALL
    SELECT h."time", h.value, h.series_id
    FROM (SELECT "time", unnest(value) AS value, unnest(series) AS series_id FROM {hot} WHERE array_ndims(value) = 1) h
    WHERE h.series_id >= 0;
CREATE OR REPLACE FUNCTION {range}(metric text, matchers jsonb, start_time timestamptz, end_time timestamptz)
RETURNS TABLE ("time" timestamptz, value double precision, labels jsonb) LANGUAGE sql STABLE AS $body$
    WITH wanted AS MATERIALIZED (
        SELECT id, id >> 5 AS bucket, (id & 31)::integer AS place, l.labels
        FROM {series} l WHERE id >= 0 AND name = metric AND l.labels @> matchers
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
