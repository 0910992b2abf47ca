-- Native histograms, which have series of negative ids, as the lists of their numbers: sealed ones in chunks, and hot ones,
-- which are alone in their row and have two dimensions.
CREATE VIEW {histogram_numbers} AS
    SELECT d."time", l.name, l.labels, d.numbers, l.id AS series_id
    FROM {series} l JOIN {sealed} c ON c.bucket = l.id >> 5 AND c.places >> (l.id & 31)::integer & 1 = 1
    CROSS JOIN LATERAL {decode_histograms}(c.times, c.places, c.data, c.floats) d
    WHERE l.id < 0
    UNION ALL
    SELECT h."time", l.name, l.labels, ARRAY(SELECT unnest(h.value)), l.id
    FROM {hot} h JOIN {series} l ON l.id = h.series[1] WHERE array_ndims(h.value) = 2;
