-- What PromQL computes of a native histogram, for SQL users. A histogram is the list of its numbers, as the view
-- {histograms} has it. Source: Prometheus 3.16, promql/quantile.go and promql/functions.go.

-- Arithmetic as Prometheus has it: infinite or zero where the server refuses a result that is too large or too small, and
-- infinite or NaN where it refuses a division by zero.
CREATE OR REPLACE FUNCTION {float_sum}(a double precision, b double precision) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
BEGIN
    RETURN CASE
        WHEN pg_catalog.abs(a) < 8e307 AND pg_catalog.abs(b) < 8e307 THEN a + b
        WHEN 'Infinity' IN (pg_catalog.abs(a), pg_catalog.abs(b)) OR 'NaN' IN (a, b) OR (a < 0) <> (b < 0) THEN a + b
        WHEN pg_catalog.abs(a) > '1.7976931348623157e308' - pg_catalog.abs(b)
            THEN pg_catalog.sign(a) * 'Infinity'::double precision
        ELSE a + b
    END;
END
$body$;
CREATE OR REPLACE FUNCTION {float_product}(a double precision, b double precision) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
DECLARE
    size constant double precision := pg_catalog.abs(b);
BEGIN
    RETURN CASE
        WHEN a = 0 OR b = 0 OR 'Infinity' IN (pg_catalog.abs(a), size) OR 'NaN' IN (a, b) THEN a * b
        WHEN size > 1 AND pg_catalog.abs(a) > 1.797693134862315e308 / size
            THEN pg_catalog.sign(a) * pg_catalog.sign(b) * 'Infinity'::double precision
        WHEN size < 1 AND pg_catalog.abs(a) < 2.3e-308 / size THEN 0
        ELSE a * b
    END;
END
$body$;
CREATE OR REPLACE FUNCTION {float_quotient}(a double precision, b double precision) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
DECLARE
    size constant double precision := pg_catalog.abs(b);
BEGIN
    RETURN CASE
        WHEN b = 0 AND a <> 'NaN' THEN
            CASE WHEN a = 0 THEN 'NaN' ELSE pg_catalog.sign(a) * 'Infinity'::double precision END
        WHEN a = 0 OR 'Infinity' IN (pg_catalog.abs(a), size) OR 'NaN' IN (a, b) THEN a / b
        WHEN size < 1 AND pg_catalog.abs(a) > 1.797693134862315e308 * size
            THEN pg_catalog.sign(a) * pg_catalog.sign(b) * 'Infinity'::double precision
        WHEN size > 1 AND pg_catalog.abs(a) < 2.3e-308 * size THEN 0
        ELSE a / b
    END;
END
$body$;

-- The buckets of {histogram_buckets} as lists, and whether there are positive and negative ones. None overlaps the zero
-- bucket: that has the part that is in both.
CREATE OR REPLACE FUNCTION {histogram_lists}(
    numbers double precision[],
    OUT lowers double precision[], OUT uppers double precision[], OUT counts double precision[], OUT length integer,
    OUT has_positive boolean, OUT has_negative boolean
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT COST 1000 AS $body$
DECLARE
    threshold constant double precision := numbers[4];
BEGIN
    SELECT pg_catalog.array_agg(b.lower), pg_catalog.array_agg(b.upper), pg_catalog.array_agg(b.count)
        INTO lowers, uppers, counts
        FROM {histogram_buckets}(numbers) AS b
        -- A zero bucket of a negative count, which a rate may have, is none.
        WHERE b.lower <> -threshold OR b.upper <> threshold OR b.count > 0;
    length := COALESCE(pg_catalog.cardinality(counts), 0);
    has_negative := length > 0 AND lowers[1] < 0 AND uppers[1] <= 0;
    has_positive := length > 0 AND lowers[length] >= 0 AND uppers[length] > 0;
    IF threshold > 0 THEN
        FOR i IN 1 .. length LOOP
            IF lowers[i] > 0 AND lowers[i] < threshold THEN
                lowers[i] := threshold;
            ELSIF uppers[i] < 0 AND uppers[i] > -threshold THEN
                uppers[i] := -threshold;
            END IF;
        END LOOP;
    END IF;
END
$body$;

-- Prometheus computes with the logarithm: that of the greatest floats is the one of infinity.
CREATE OR REPLACE FUNCTION {histogram_limited}(value double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $body$
    SELECT CASE WHEN pg_catalog.abs(value) > 1.797693134862315e308 THEN pg_catalog.sign(value) * 'Infinity'::double precision
        ELSE value END
$body$;

CREATE OR REPLACE FUNCTION {histogram_quantile}(q double precision, numbers double precision[]) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT COST 5000 AS $body$
DECLARE
    custom constant boolean := numbers[1] = -53;
    total constant double precision := numbers[6];
    -- Observations of NaN are in no bucket.
    has_nan constant boolean := numbers[7] = 'NaN';
    is_forward constant boolean := has_nan OR q < 0.5;
    lists record;
    at integer;
    rank double precision;
    seen double precision := 0;
    cell double precision := 0;
    lower double precision := 0;
    upper double precision := 0;
    share double precision;
BEGIN
    IF q = 'NaN' THEN
        RETURN q;
    ELSIF q < 0 THEN
        RETURN '-Infinity';
    ELSIF q > 1 THEN
        RETURN 'Infinity';
    ELSIF total = 0 OR total = 'NaN' THEN
        RETURN 'NaN';
    END IF;
    lists := {histogram_lists}(numbers);
    rank := {float_product}(CASE WHEN is_forward THEN q ELSE 1 - q END, total);
    FOR i IN 1 .. lists.length LOOP
        at := CASE WHEN is_forward THEN i ELSE lists.length + 1 - i END;
        cell := lists.counts[at];
        seen := {float_sum}(seen, cell);
        EXIT WHEN seen >= rank;
    END LOOP;
    IF at IS NOT NULL THEN
        lower := lists.lowers[at];
        upper := lists.uppers[at];
    END IF;
    IF custom AND lower = '-Infinity' THEN
        IF upper <= 0 THEN
            RETURN upper;
        END IF;
        lower := 0;
    ELSIF custom AND upper = 'Infinity' THEN
        RETURN lower;
    ELSIF NOT custom AND lower < 0 AND upper > 0 THEN
        -- In the zero bucket are no observations of a sign that no bucket has.
        IF lists.has_positive AND NOT lists.has_negative THEN
            lower := 0;
        ELSIF lists.has_negative AND NOT lists.has_positive THEN
            upper := 0;
        END IF;
    END IF;
    seen := LEAST(seen, total);
    IF seen < rank THEN
        RETURN CASE WHEN has_nan THEN 'NaN' ELSE upper END;
    END IF;
    -- How far into the bucket it is.
    share := {float_quotient}(CASE WHEN is_forward THEN rank - (seen - cell) ELSE seen - rank END, cell);
    IF custom OR lower <= 0 AND upper >= 0 THEN
        RETURN {float_sum}(lower, {float_product}({float_sum}(upper, -lower), share));
    ELSIF lower > 0 THEN
        IF upper = 'Infinity' THEN
            RETURN CASE WHEN share = 0 THEN 'NaN' ELSE upper END;
        END IF;
        RETURN {histogram_limited}(lower * pg_catalog.power(upper / lower, share));
    END IF;
    IF lower = '-Infinity' THEN
        RETURN CASE WHEN share = 1 THEN 'NaN' ELSE lower END;
    END IF;
    RETURN {histogram_limited}(upper * pg_catalog.power(lower / upper, 1 - share));
END
$body$;

-- How many observations are below a limit, or all if no bucket reaches it.
CREATE OR REPLACE FUNCTION {histogram_rank}(
    at double precision, lists record, custom boolean, total double precision
) RETURNS double precision LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT AS $body$
DECLARE
    rank double precision := 0;
    lower double precision;
    upper double precision;
    is_linear boolean;
    share double precision;
BEGIN
    FOR i IN 1 .. lists.length LOOP
        lower := lists.lowers[i];
        upper := lists.uppers[i];
        is_linear := custom;
        IF custom THEN
            IF lower = '-Infinity' AND upper > 0 THEN
                lower := 0;
            END IF;
        ELSIF lower <= 0 AND upper >= 0 THEN
            is_linear := true;
            IF lists.has_positive AND NOT lists.has_negative THEN
                lower := 0;
            ELSIF lists.has_negative AND NOT lists.has_positive THEN
                upper := 0;
            END IF;
        END IF;
        IF lower >= at THEN
            RETURN LEAST(rank, total);
        ELSIF upper > at THEN
            IF is_linear AND lower = '-Infinity' THEN
                RETURN LEAST(lists.counts[i], total);
            ELSIF is_linear AND upper = 'Infinity' THEN
                share := 0;
            ELSIF is_linear THEN
                share := {float_quotient}({float_sum}(at, -lower), {float_sum}(upper, -lower));
            -- Of a logarithm's infinite width nothing is below.
            ELSIF at > 0 THEN
                share := CASE WHEN upper = 'Infinity' THEN 0 ELSE pg_catalog.ln(at / lower) / pg_catalog.ln(upper / lower) END;
            ELSE
                share := 1 - CASE WHEN lower = '-Infinity' THEN 0 ELSE pg_catalog.ln(at / upper) / pg_catalog.ln(lower / upper) END;
            END IF;
            RETURN LEAST({float_sum}(rank, {float_product}(lists.counts[i], share)), total);
        END IF;
        rank := {float_sum}(rank, lists.counts[i]);
    END LOOP;
    RETURN total;
END
$body$;

CREATE OR REPLACE FUNCTION {histogram_fraction}(
    lower double precision, upper double precision, numbers double precision[]
) RETURNS double precision LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT COST 5000 AS $body$
DECLARE
    custom constant boolean := numbers[1] = -53;
    total double precision := numbers[6];
    lists record;
BEGIN
    IF total = 0 OR 'NaN' IN (total, lower, upper) THEN
        RETURN 'NaN';
    ELSIF lower >= upper THEN
        RETURN 0;
    END IF;
    lists := {histogram_lists}(numbers);
    IF numbers[7] = 'NaN' THEN
        -- Observations of NaN are in no bucket.
        total := 0;
        FOR i IN 1 .. lists.length LOOP
            total := {float_sum}(total, lists.counts[i]);
        END LOOP;
    END IF;
    RETURN {float_quotient}(
        {float_sum}(
            {histogram_rank}(upper, lists, custom, total), -{histogram_rank}(lower, lists, custom, total)
        ),
        numbers[6]
    );
END
$body$;

CREATE OR REPLACE FUNCTION {histogram_avg}(numbers double precision[]) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT AS $body$
    SELECT {float_quotient}(numbers[7], numbers[6])
$body$;

-- Each observation counts as the middle of its bucket.
CREATE OR REPLACE FUNCTION {histogram_stddev}(numbers double precision[]) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT COST 5000 AS $body$
DECLARE
    custom constant boolean := numbers[1] = -53;
    mean constant double precision := {float_quotient}(numbers[7], numbers[6]);
    lists constant record := {histogram_lists}(numbers);
    middle double precision;
    variance double precision := 0;
BEGIN
    FOR i IN 1 .. lists.length LOOP
        IF custom THEN
            middle := {float_sum}(lists.lowers[i], lists.uppers[i]) / 2;
        ELSIF lists.lowers[i] <= 0 AND lists.uppers[i] >= 0 THEN
            middle := 0;
        ELSE
            middle := pg_catalog.sqrt({float_product}(lists.uppers[i], lists.lowers[i]))
                * CASE WHEN lists.uppers[i] < 0 THEN -1 ELSE 1 END;
        END IF;
        middle := {float_sum}(middle, -mean);
        variance := {float_sum}(variance, {float_product}({float_product}(lists.counts[i], middle), middle));
    END LOOP;
    variance := {float_quotient}(variance, numbers[6]);
    RETURN CASE WHEN variance < 0 THEN 'NaN' ELSE pg_catalog.sqrt(variance) END;
END
$body$;

COMMENT ON FUNCTION {histogram_quantile}(double precision, double precision[]) IS
    'histogram_quantile of PromQL, of the numbers of a native histogram (prometheus-postgresql-adapter)';
COMMENT ON FUNCTION {histogram_fraction}(double precision, double precision, double precision[]) IS
    'histogram_fraction of PromQL, of the numbers of a native histogram (prometheus-postgresql-adapter)';
COMMENT ON FUNCTION {histogram_avg}(double precision[]) IS
    'histogram_avg of PromQL, of the numbers of a native histogram (prometheus-postgresql-adapter)';
COMMENT ON FUNCTION {histogram_stddev}(double precision[]) IS
    'histogram_stddev of PromQL, of the numbers of a native histogram (prometheus-postgresql-adapter)';
