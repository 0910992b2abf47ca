-- The rate of native histograms that are counters. Source: Prometheus 3.16, promql/functions.go.

CREATE TYPE {histogram_sample} AS (time_ms bigint, numbers double precision[]);

-- The increase over the samples first to last of a series, which are at least two; NULL if there are exponential and custom
-- buckets. "events" are the indices of the samples that follow a reset, or have another schema than the one before, and
-- "resets" those that follow a reset.
CREATE OR REPLACE FUNCTION {histogram_increase}(
    samples {histogram_sample}[], first integer, last integer, events integer[], resets integer[]
) RETURNS double precision[] LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE COST 20000 AS $body$
DECLARE
    -- What the first one has counted before a reset is of no interest, nor how.
    is_anew constant boolean := first + 1 = ANY (resets);
    start constant double precision[] := samples[CASE WHEN is_anew THEN first + 1 ELSE first END].numbers;
    schema double precision := start[1];
    increase double precision[] := samples[last].numbers;
    event integer;
BEGIN
    FOREACH event IN ARRAY events LOOP
        CONTINUE WHEN event <= first OR event > last OR is_anew AND event = first + 1;
        IF (samples[event].numbers[1] = -53) <> (start[1] = -53) THEN
            RETURN NULL;
        END IF;
        schema := LEAST(schema, samples[event].numbers[1]);
    END LOOP;
    -- As nothing with that schema, which brings the result to it and leaves out empty buckets; or nothing with those bounds.
    increase := {histogram_added}(
        increase,
        {histogram_of_cells}(
            schema, increase[4], 0, 0, 0, start[9 : 8 + start[8]::integer], NULL::integer[], NULL::bigint[], NULL::double precision[]
        ),
        1
    );
    IF NOT is_anew THEN
        increase := {histogram_added}(increase, start, -1);
    END IF;
    FOREACH event IN ARRAY resets LOOP
        CONTINUE WHEN event <= first + 1 OR event > last;
        increase := {histogram_added}(increase, samples[event - 1].numbers, 1);
    END LOOP;
    RETURN increase;
END
$body$;

CREATE OR REPLACE FUNCTION {histogram_rate}(
    metric text, matchers jsonb, start_time timestamptz, end_time timestamptz, step interval, range interval
) RETURNS TABLE ("time" timestamptz, labels jsonb, numbers double precision[]) LANGUAGE plpgsql STABLE AS $body$
DECLARE
    start_ms constant bigint := pg_catalog.round(EXTRACT(epoch FROM start_time) * 1000);
    end_ms constant bigint := pg_catalog.round(EXTRACT(epoch FROM end_time) * 1000);
    step_ms constant bigint := pg_catalog.round(EXTRACT(epoch FROM step) * 1000);
    range_ms constant bigint := pg_catalog.round(EXTRACT(epoch FROM range) * 1000);
    from_time constant timestamptz := {time_of_ms}(start_ms - range_ms);
    to_time constant timestamptz := {time_of_ms}(end_ms);
    series record;
    samples {histogram_sample}[];
    times bigint[];
    count integer;
    events integer[];
    resets integer[];
    floats bigint[];
    -- The samples in a window, which does not include its start; and the first float after that.
    first integer;
    last integer;
    next_float integer;
    at_ms bigint;
    increase double precision[];
    sampled double precision;
    average double precision;
    to_start double precision;
    to_end double precision;
BEGIN
    IF step_ms <= 0 OR range_ms <= 0 THEN
        RAISE EXCEPTION 'step and range must be at least 1 ms, and not % and %', step, range
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR series IN
        SELECT h.series_id, h.labels,
            pg_catalog.array_agg(
                ROW(pg_catalog.round(EXTRACT(epoch FROM h."time") * 1000)::bigint, h.numbers)::{histogram_sample} ORDER BY h."time"
            ) AS samples
        FROM {histogram_range}(metric, matchers, from_time, to_time) AS h GROUP BY h.series_id, h.labels ORDER BY h.series_id
    LOOP
        samples := series.samples;
        labels := series.labels;
        count := pg_catalog.cardinality(samples);
        times := ARRAY(SELECT s.time_ms FROM pg_catalog.unnest(samples) AS s);
        events := ARRAY[]::integer[];
        resets := ARRAY[]::integer[];
        FOR i IN 2 .. count LOOP
            IF {histogram_is_reset}(samples[i - 1].numbers, samples[i].numbers) THEN
                resets := resets || i;
                events := events || i;
            ELSIF samples[i - 1].numbers[1] <> samples[i].numbers[1] THEN
                events := events || i;
            END IF;
        END LOOP;
        -- Floats with the same labels, without stale markers.
        floats := ARRAY(
            SELECT pg_catalog.round(EXTRACT(epoch FROM f."time") * 1000)::bigint
            FROM {range}(metric, series.labels, from_time, to_time) AS f
            WHERE f.labels = series.labels AND pg_catalog.float8send(f.value) <> '\x7ff0000000000002'::bytea ORDER BY 1
        );
        first := 1;
        last := 0;
        next_float := 1;
        FOR number IN 0 .. (end_ms - start_ms) / step_ms LOOP
            at_ms := start_ms + number * step_ms;
            WHILE last < count AND times[last + 1] <= at_ms LOOP
                last := last + 1;
            END LOOP;
            WHILE first <= count AND times[first] <= at_ms - range_ms LOOP
                first := first + 1;
            END LOOP;
            WHILE floats[next_float] <= at_ms - range_ms LOOP
                next_float := next_float + 1;
            END LOOP;
            CONTINUE WHEN last <= first OR floats[next_float] <= at_ms;
            increase := {histogram_increase}(samples, first, last, events, resets);
            CONTINUE WHEN increase IS NULL;
            sampled := (times[last] - times[first]) / 1000::double precision;
            average := sampled / (last - first);
            to_start := (times[first] - at_ms + range_ms) / 1000::double precision;
            to_end := (at_ms - times[last]) / 1000::double precision;
            -- As far from the first sample as this, the series is taken to begin in the window; and to end accordingly.
            IF to_start >= average * 1.1::double precision THEN
                to_start := average / 2;
            END IF;
            IF to_end >= average * 1.1::double precision THEN
                to_end := average / 2;
            END IF;
            -- It has not been below zero.
            IF increase[6] > 0 AND samples[first].numbers[6] >= 0 THEN
                to_start := LEAST(
                    to_start, {float_product}(sampled, {float_quotient}(samples[first].numbers[6], increase[6]))
                );
            END IF;
            "time" := {time_of_ms}(at_ms);
            numbers := {histogram_product}(
                increase, (sampled + to_start + to_end) / sampled / (range_ms / 1000::double precision)
            );
            RETURN NEXT;
        END LOOP;
    END LOOP;
END
$body$;

COMMENT ON FUNCTION {histogram_rate}(text, jsonb, timestamptz, timestamptz, interval, interval) IS
    'rate of PromQL, of native histograms at each step, as their numbers (prometheus-postgresql-adapter)';
