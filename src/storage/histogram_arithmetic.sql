-- Sums and differences of native histograms as PromQL has them. A histogram is the list of its numbers. Source: Prometheus
-- 3.16, model/histogram/float_histogram.go.

-- The buckets: those of positive observations are side 1, those of negative ones side 2. In their order.
CREATE OR REPLACE FUNCTION {histogram_cells}(numbers double precision[])
RETURNS TABLE (side integer, index bigint, count double precision)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT ROWS 20 COST 1000 AS $body$
DECLARE
    head integer := 9 + numbers[8]::integer;
    runs integer;
    at integer;
BEGIN
    FOR s IN 1 .. 2 LOOP
        side := s;
        runs := numbers[head];
        at := head + 2 * runs;
        FOR run IN 1 .. runs LOOP
            index := numbers[head + 2 * run - 1];
            FOR i IN 1 .. numbers[head + 2 * run]::integer LOOP
                at := at + 1;
                count := numbers[at];
                RETURN NEXT;
                index := index + 1;
            END LOOP;
        END LOOP;
        head := at + 1;
    END LOOP;
END
$body$;

-- The numbers of a gauge's histogram of floats with these buckets, which are in their order; empty ones are left out.
CREATE OR REPLACE FUNCTION {histogram_of_cells}(
    schema double precision, threshold double precision, zeros double precision, count double precision,
    sum double precision, bounds double precision[], sides integer[], indices bigint[], counts double precision[]
) RETURNS double precision[] LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
DECLARE
    numbers double precision[] := ARRAY[schema, 7, 0, threshold, zeros, count, sum, pg_catalog.cardinality(bounds)] || bounds;
    runs double precision[];
    filled double precision[];
    -- Where the length of the last run is, and the index after it.
    last integer;
    follows bigint;
BEGIN
    FOR side IN 1 .. 2 LOOP
        runs := ARRAY[]::double precision[];
        filled := ARRAY[]::double precision[];
        follows := NULL;
        FOR i IN 1 .. COALESCE(pg_catalog.cardinality(counts), 0) LOOP
            CONTINUE WHEN sides[i] <> side OR counts[i] = 0;
            filled := filled || counts[i];
            IF indices[i] = follows THEN
                runs[last] := runs[last] + 1;
            ELSE
                runs := runs || indices[i]::double precision || 1::double precision;
                last := pg_catalog.cardinality(runs);
            END IF;
            follows := indices[i] + 1;
        END LOOP;
        numbers := numbers || pg_catalog.cardinality(runs) / 2::double precision || runs || filled;
    END LOOP;
    RETURN numbers;
END
$body$;

-- The index of the bucket of a lower schema that a bucket is in.
CREATE OR REPLACE FUNCTION {histogram_index}(index bigint, schema integer, lower_schema integer) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $body$
    SELECT (index - 1 >> schema - lower_schema) + 1
$body$;

-- Whether bounds are as good as equal is decided with a little room: the server computes powers that a sender has in a table.

-- What a histogram's zero bucket has if it is as wide as this or wider: as wide as it must be not to cut a bucket.
CREATE OR REPLACE FUNCTION {histogram_widened}(
    numbers double precision[], at_least double precision, OUT threshold double precision, OUT zeros double precision
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
DECLARE
    schema constant integer := numbers[1];
    wider double precision;
BEGIN
    threshold := at_least;
    LOOP
        SELECT pg_catalog.max({bucket_bound}(schema, c.index)) INTO wider FROM {histogram_cells}(numbers) AS c
            WHERE {bucket_bound}(schema, c.index - 1) < threshold * (1 - 1e-12)
            AND {bucket_bound}(schema, c.index) > threshold * (1 + 1e-12);
        EXIT WHEN wider IS NULL;
        threshold := wider;
    END LOOP;
    SELECT pg_catalog.sum(c.count ORDER BY c.side, c.index) INTO zeros FROM (
        SELECT 0 AS side, 0 AS index, numbers[5] AS count
        UNION ALL
        SELECT c.side, c.index, c.count FROM {histogram_cells}(numbers) AS c
        WHERE {bucket_bound}(schema, c.index - 1) < threshold * (1 - 1e-12)
    ) AS c;
END
$body$;

-- The bounds that both have.
CREATE OR REPLACE FUNCTION {histogram_bounds}(a double precision[], b double precision[]) RETURNS double precision[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $body$
    SELECT ARRAY(SELECT bound FROM pg_catalog.unnest(a[9 : 8 + a[8]::integer]) AS bound
        WHERE bound = ANY (b[9 : 8 + b[8]::integer]) ORDER BY bound)
$body$;

-- The custom bucket among these bounds that another histogram's bucket is in.
CREATE OR REPLACE FUNCTION {histogram_custom_index}(index bigint, numbers double precision[], bounds double precision[])
RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $body$
    SELECT CASE WHEN index < numbers[8]
        THEN (SELECT pg_catalog.count(*) FROM pg_catalog.unnest(bounds) AS bound WHERE bound < numbers[9 + index])
        ELSE pg_catalog.cardinality(bounds) END
$body$;

-- The sum of a histogram and the sign (1 or -1) times another one, which both have custom buckets, or neither.
CREATE OR REPLACE FUNCTION {histogram_added}(a double precision[], b double precision[], sign double precision)
RETURNS double precision[] LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE COST 5000 AS $body$
DECLARE
    custom constant boolean := a[1] = -53;
    schema constant integer := LEAST(a[1], b[1]);
    bounds double precision[] := ARRAY[]::double precision[];
    threshold double precision := a[4];
    zeros double precision := a[5];
    other record;
    widened record;
    sides integer[];
    indices bigint[];
    counts double precision[];
BEGIN
    SELECT b[4] AS threshold, b[5] AS zeros INTO other;
    IF custom THEN
        bounds := {histogram_bounds}(a, b);
    END IF;
    WHILE NOT custom AND other.threshold <> threshold LOOP
        IF threshold > other.threshold THEN
            other := {histogram_widened}(b, threshold);
        END IF;
        IF other.threshold > threshold THEN
            widened := {histogram_widened}(a, other.threshold);
            threshold := widened.threshold;
            zeros := widened.zeros;
        END IF;
    END LOOP;
    -- Added in the order of Prometheus: so that what is nothing there is nothing here, and not a rounding error.
    WITH part AS (
        SELECT c.side, i.index, 1 AS no, c.index AS place, c.count FROM {histogram_cells}(a) AS c
        CROSS JOIN LATERAL (SELECT CASE WHEN custom THEN {histogram_custom_index}(c.index, a, bounds)
            ELSE {histogram_index}(c.index, a[1]::integer, schema) END) AS i (index)
        -- The others are in the wider zero bucket.
        WHERE threshold = a[4] OR {bucket_bound}(a[1]::integer, c.index - 1) >= threshold * (1 - 1e-12)
        UNION ALL
        SELECT c.side, i.index, 2, pg_catalog.min(c.index), sign * pg_catalog.sum(c.count ORDER BY c.index)
        FROM {histogram_cells}(b) AS c
        CROSS JOIN LATERAL (SELECT CASE WHEN custom THEN {histogram_custom_index}(c.index, b, bounds)
            ELSE {histogram_index}(c.index, b[1]::integer, schema) END) AS i (index)
        WHERE custom OR {bucket_bound}(schema, i.index) > threshold * (1 + 1e-12)
        GROUP BY c.side, i.index, CASE WHEN custom THEN c.index END
    ), cell AS (
        SELECT side, index, pg_catalog.sum(part.count ORDER BY no, place) AS count FROM part GROUP BY side, index
    )
    SELECT pg_catalog.array_agg(side ORDER BY side, index), pg_catalog.array_agg(index ORDER BY side, index),
        pg_catalog.array_agg(cell.count ORDER BY side, index) INTO sides, indices, counts FROM cell;
    RETURN {histogram_of_cells}(
        schema, threshold, {float_sum}(zeros, sign * other.zeros), {float_sum}(a[6], sign * b[6]),
        {float_sum}(a[7], sign * b[7]), bounds, sides, indices, counts
    );
END
$body$;

-- A histogram with all counts and the sum times a factor.
CREATE OR REPLACE FUNCTION {histogram_product}(numbers double precision[], factor double precision)
RETURNS double precision[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $body$
    SELECT {histogram_of_cells}(
        numbers[1], numbers[4], {float_product}(numbers[5], factor), {float_product}(numbers[6], factor),
        {float_product}(numbers[7], factor), numbers[9 : 8 + numbers[8]::integer], pg_catalog.array_agg(c.side),
        pg_catalog.array_agg(c.index), pg_catalog.array_agg({float_product}(c.count, factor))
    ) FROM {histogram_cells}(numbers) AS c
$body$;

-- Whether a counter was reset between two of its histograms: by its hint, or as far as its counts tell.
CREATE OR REPLACE FUNCTION {histogram_is_reset}(before double precision[], numbers double precision[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE COST 5000 AS $body$
DECLARE
    hint constant integer := numbers[2]::integer & 3;
    custom constant boolean := numbers[1] = -53;
    schema constant integer := numbers[1];
    bounds double precision[];
    widened record;
BEGIN
    IF hint IN (1, 2) THEN
        RETURN hint = 1;
    ELSIF numbers[6] < before[6] THEN
        RETURN true;
    ELSIF numbers[1] > before[1] OR custom <> (before[1] = -53) AND custom THEN
        RETURN true;
    ELSIF numbers[1] = before[1] AND numbers[4:6] = before[4:6] AND numbers[8:] = before[8:] THEN
        RETURN false;
    END IF;
    IF custom THEN
        bounds := {histogram_bounds}(before, numbers);
        RETURN EXISTS (
            SELECT FROM (
                SELECT {histogram_custom_index}(c.index, before, bounds) AS index, pg_catalog.sum(c.count) AS count
                FROM {histogram_cells}(before) AS c GROUP BY 1
            ) AS b LEFT JOIN (
                SELECT {histogram_custom_index}(c.index, numbers, bounds) AS index, pg_catalog.sum(c.count) AS count
                FROM {histogram_cells}(numbers) AS c GROUP BY 1
            ) AS n ON n.index = b.index
            WHERE COALESCE(n.count, 0) < b.count
        );
    END IF;
    IF numbers[4] < before[4] THEN
        RETURN true;
    ELSIF numbers[4] > before[4] THEN
        widened := {histogram_widened}(before, numbers[4]);
    ELSE
        SELECT before[4] AS threshold, before[5] AS zeros INTO widened;
    END IF;
    RETURN widened.threshold <> numbers[4] OR numbers[5] < widened.zeros OR EXISTS (
        SELECT FROM (
            SELECT c.side, {histogram_index}(c.index, before[1]::integer, schema) AS index, pg_catalog.sum(c.count) AS count
            FROM {histogram_cells}(before) AS c GROUP BY 1, 2
        ) AS b LEFT JOIN {histogram_cells}(numbers) AS n ON n.side = b.side AND n.index = b.index
        WHERE COALESCE(n.count, 0) < b.count AND {bucket_bound}(schema, b.index) > numbers[4] * (1 + 1e-12)
    );
END
$body$;
