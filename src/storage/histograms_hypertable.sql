-- As in histograms_chunks.sql; a sealed one has a row.
CREATE VIEW {histogram_numbers} AS
    SELECT s."time", l.name, l.labels, s.histogram AS numbers, l.id AS series_id
    FROM {series} l JOIN {samples} s ON s.series_id = l.id
    WHERE l.id < 0 AND s.histogram IS NOT NULL
    UNION ALL
    SELECT h."time", l.name, l.labels, ARRAY(SELECT unnest(h.value)), l.id
    FROM {hot} h JOIN {series} l ON l.id = h.series[1] WHERE array_ndims(h.value) = 2;
