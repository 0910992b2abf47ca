-- Native histograms as SQL users see them, in both layouts.
CREATE TYPE {histogram_bucket} AS (lower double precision, upper double precision, count double precision);
CREATE VIEW {histograms} AS
    SELECT n."time", n.name, n.labels, n.numbers[6] AS count, n.numbers[7] AS sum, n.numbers[1]::integer AS schema,
        n.numbers[4] AS zero_threshold, n.numbers[5] AS zero_count,
        ARRAY(SELECT ROW(b.lower, b.upper, b.count)::{histogram_bucket} FROM {histogram_buckets}(n.numbers) b) AS buckets,
        (ARRAY['unknown', 'yes', 'no', 'gauge'])[n.numbers[2]::integer % 4 + 1] AS reset_hint,
        -- A sender may say anything; what is no timestamptz is unknown.
        CASE WHEN n.numbers[3] <> 0 AND n.numbers[3] BETWEEN -210866803200000 AND 9223371331199999
            THEN to_timestamp(n.numbers[3] / 1000) END AS start_time,
        n.numbers
    FROM {histogram_numbers} n;

COMMENT ON VIEW {histogram_numbers} IS 'Every native histogram as a list of numbers (prometheus-postgresql-adapter)';
COMMENT ON VIEW {histograms} IS
    'Every native histogram with its labels; buckets are those that have observations (prometheus-postgresql-adapter)';
