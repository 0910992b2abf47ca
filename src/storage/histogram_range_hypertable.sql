-- As in histogram_range_chunks.sql.
CREATE FUNCTION {histogram_range}(metric text, matchers jsonb, start_time timestamptz, end_time timestamptz)
RETURNS TABLE (series_id bigint, labels jsonb, "time" timestamptz, numbers double precision[]) LANGUAGE sql STABLE AS $body$
    WITH wanted AS MATERIALIZED (
        SELECT id, l.labels FROM {series} l WHERE id < 0 AND name = metric AND l.labels @> matchers
    ), found AS (
        SELECT w.id, w.labels, s."time", s.histogram AS numbers, 0::bigint AS no
        FROM wanted w JOIN {samples} s ON s.series_id = w.id
        WHERE s."time" >= start_time AND s."time" <= end_time AND s.histogram IS NOT NULL
        UNION ALL
        SELECT w.id, w.labels, h."time", ARRAY(SELECT unnest(h.value)), h.no
        FROM {hot} h JOIN wanted w ON w.id = h.series[1]
        WHERE h."time" >= start_time AND h."time" <= end_time AND array_ndims(h.value) = 2
    )
    SELECT DISTINCT ON (found.id, found."time") found.id, found.labels, found."time", found.numbers
    FROM found ORDER BY found.id, found."time", found.no
$body$;
