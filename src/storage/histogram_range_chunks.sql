-- Native histograms of one metric between two times, both included, whose labels contain matchers: as {range} for floats. Of
-- two of one series and time the first counts.
CREATE FUNCTION {histogram_range}(metric text, matchers jsonb, start_time timestamptz, end_time timestamptz)
RETURNS TABLE (series_id bigint, labels jsonb, "time" timestamptz, numbers double precision[]) LANGUAGE sql STABLE AS $body$
    WITH wanted AS MATERIALIZED (
        SELECT id, id >> 5 AS bucket, (id & 31)::integer AS place, l.labels
        FROM {series} l WHERE id < 0 AND name = metric AND l.labels @> matchers
    ), found AS (
        SELECT w.id, w.labels, d."time", d.numbers, 0::bigint AS no
        FROM wanted w JOIN {sealed} c ON c.bucket = w.bucket AND c.places >> w.place & 1 = 1
        CROSS JOIN LATERAL {decode_histograms}(c.times, c.places, c.data, c.floats) d
        WHERE c.bucket = ANY (ARRAY(SELECT DISTINCT bucket FROM wanted)) AND c.last >= start_time AND c.first <= end_time
        AND c.first >= (SELECT coalesce(max(lower), '-infinity') FROM {segments} WHERE lower <= start_time)
        AND d."time" >= start_time AND d."time" <= end_time
        UNION ALL
        SELECT w.id, w.labels, h."time", ARRAY(SELECT unnest(h.value)), h.no
        FROM {hot} h JOIN wanted w ON w.id = h.series[1]
        WHERE h."time" >= start_time AND h."time" <= end_time AND array_ndims(h.value) = 2
    )
    SELECT DISTINCT ON (found.id, found."time") found.id, found.labels, found."time", found.numbers
    FROM found ORDER BY found.id, found."time", found.no
$body$;
