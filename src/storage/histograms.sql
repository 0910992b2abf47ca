-- Decodes native histograms; src/storage/chunk/histograms.rs has the format of their chunks and the other decoder, and
-- src/model/histogram.rs the list of the numbers of one. The functions of chunk.sql are used.

-- A list of count values, which begins at "at" and ends before "next". {decode} does the same without the array.
CREATE OR REPLACE FUNCTION {decode_values}(
    stream bit varying, at integer, count integer, floats double precision[],
    OUT decoded double precision[], OUT next integer
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
DECLARE
    scale constant integer := pg_catalog.substring(stream, at, 2)::integer;
    power integer;
    decimals double precision;
    divisor double precision := 1;
    factor double precision := 1;
    odd record;
    kept record;
    list record;
    rests record;
BEGIN
    next := at + 2;
    IF scale = 0 THEN
        divisor := ('1e' || pg_catalog.substring(stream, next, 4)::integer)::double precision;
        next := next + 4;
    ELSIF scale = 1 THEN
        factor := ('1e-' || pg_catalog.substring(stream, next, 4)::integer)::double precision;
        next := next + 4;
    ELSIF scale = 2 THEN
        power := pg_catalog.substring(stream, next, 8)::integer - 62;
        next := next + 8;
        IF power >= 178 THEN
            decimals := ('1e' || power - 178)::double precision;
            power := pg_catalog.substring(stream, next, 8)::integer - 62;
            next := next + 8;
        END IF;
        IF power > 62 THEN
            divisor := 1::bigint << 62;
            factor := 1::double precision / (1::bigint << LEAST(power - 62, 62));
        ELSIF power > 0 THEN
            divisor := 1::bigint << power;
        ELSE
            factor := 1::bigint << -power;
        END IF;
    END IF;
    IF pg_catalog.substring(stream, next, 1) = B'1' THEN
        odd := {decode_positions}(stream, next + 1, count);
        kept := {decode_blocks}(stream, odd.next, pg_catalog.cardinality(odd.positions), 0, 0, 0);
        list := {decode_integers}(stream, kept.next, count);
    ELSE
        list := {decode_integers}(stream, next + 1, count);
    END IF;
    next := list.next;
    IF scale = 3 THEN
        decoded := ARRAY(SELECT floats[index + 1] FROM pg_catalog.unnest(list.integers::integer[]) AS numbers(index));
    ELSIF decimals IS NOT NULL THEN
        rests := {decode_integers}(stream, next, count);
        next := rests.next;
        decoded := ARRAY(SELECT index / decimals + rest / divisor * factor
            FROM ROWS FROM (pg_catalog.unnest(list.integers), pg_catalog.unnest(rests.integers)) AS numbers(index, rest));
    ELSE
        decoded := ARRAY(SELECT index / divisor * factor FROM pg_catalog.unnest(list.integers) AS numbers(index));
    END IF;
    IF odd IS NOT NULL THEN
        FOR i IN 1 .. pg_catalog.cardinality(odd.positions) LOOP
            decoded[odd.positions[i]] := floats[kept.integers[i] + 1];
        END LOOP;
    END IF;
    IF pg_catalog.array_position(decoded, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'corrupt chunk: more than % floats are wanted', COALESCE(pg_catalog.cardinality(floats), 0)
            USING ERRCODE = 'data_corrupted';
    END IF;
END
$body$;

-- A column of counts: whole ones, or floats.
CREATE OR REPLACE FUNCTION {decode_counts}(
    stream bit varying, at integer, count integer, floats double precision[], whole boolean,
    OUT decoded double precision[], OUT next integer
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
DECLARE
    list record;
BEGIN
    IF whole THEN
        list := {decode_integers}(stream, at, count);
        IF 0 > ANY (list.integers) OR 9007199254740992 <= ANY (list.integers) THEN
            RAISE EXCEPTION 'corrupt chunk: counts that are none' USING ERRCODE = 'data_corrupted';
        END IF;
        decoded := list.integers::double precision[];
    ELSE
        list := {decode_values}(stream, at, count, floats);
        decoded := list.decoded;
    END IF;
    next := list.next;
END
$body$;

-- The numbers of each of the count histograms of a stream that ends before "ends", in a row each of number, counted from 1;
-- none for a stale marker.
CREATE OR REPLACE FUNCTION {decode_columns}(
    stream bit varying, ends integer, count integer, floats double precision[]
) RETURNS TABLE (number integer, numbers double precision[])
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 200 COST 100000 AS $body$
DECLARE
    whole constant boolean := pg_catalog.substring(stream, 1, 2) = B'00';
    width integer := pg_catalog.substring(stream, 3, 6)::integer;
    schema constant bigint := pg_catalog.substring(stream, 9, width)::bit(64)::bigint >> 1 >> (63 - width);
    at integer := 9 + width;
    threshold double precision := 0;
    bounds double precision[] := ARRAY[]::double precision[];
    -- The bounds; then the positive and the negative buckets.
    widths integer[] := ARRAY[]::integer[];
    indices bigint[] := ARRAY[]::bigint[];
    hints record;
    starts record;
    sums record;
    counts record;
    zeros record;
    list record;
    -- The columns of all buckets, in the end, and the last of them before that: an array is copied whenever it grows.
    cells double precision[] := ARRAY[]::double precision[];
    part double precision[] := ARRAY[]::double precision[];
    cell double precision;
    index bigint;
    total double precision;
    first integer;
    runs double precision[];
    -- Where the length of the last run is.
    last integer;
    -- The index after it.
    follows bigint;
    filled double precision[];
BEGIN
    width := pg_catalog.substring(stream, at, 11)::integer;
    at := at + 11;
    IF width = 2047 THEN
        list := {decode_values}(stream, at, 1, floats);
        threshold := list.decoded[1];
        at := list.next;
    ELSIF width > 0 THEN
        threshold := pg_catalog.power(2::double precision, width - 1023);
    END IF;
    FOR i IN 0 .. 2 LOOP
        width := pg_catalog.substring(stream, at, 5)::integer;
        at := at + 5 + width;
        width := pg_catalog.substring(stream, at - width, width)::integer;
        IF width < 0 OR (width::bigint + pg_catalog.cardinality(bounds) + pg_catalog.cardinality(indices)) * count > 1048576 THEN
            RAISE EXCEPTION 'corrupt chunk: % columns of % numbers', width, count USING ERRCODE = 'data_corrupted';
        END IF;
        widths := widths || width;
        IF width > 0 AND i = 0 THEN
            list := {decode_values}(stream, at, width, floats);
            bounds := list.decoded;
            at := list.next;
        ELSIF width > 0 THEN
            list := {decode_integers}(stream, at, width);
            indices := indices || list.integers;
            at := list.next;
        END IF;
    END LOOP;
    hints := {decode_integers}(stream, at, count);
    starts := {decode_values}(stream, hints.next, count, floats);
    sums := {decode_values}(stream, starts.next, count, floats);
    IF whole THEN
        list := {decode_integers}(stream, sums.next, count);
    ELSE
        counts := {decode_values}(stream, sums.next, count, floats);
        list := counts;
    END IF;
    zeros := {decode_counts}(stream, list.next, count, floats, whole);
    at := zeros.next;
    IF whole THEN
        counts := list;
    END IF;
    FOR i IN 1 .. pg_catalog.cardinality(indices) LOOP
        list := {decode_counts}(stream, at, count, floats, whole);
        part := part || list.decoded;
        IF pg_catalog.cardinality(part) > 16384 THEN
            cells := cells || part;
            part := ARRAY[]::double precision[];
        END IF;
        at := list.next;
    END LOOP;
    cells := cells || part;
    IF at <> ends OR 0 > ANY (hints.integers) OR 3 < ANY (hints.integers) THEN
        RAISE EXCEPTION 'corrupt chunk: histograms end at bit % and not at %, or wrong hints', at, ends
            USING ERRCODE = 'data_corrupted';
    END IF;
    FOR i IN 1 .. count LOOP
        CONTINUE WHEN sums.decoded[i] = 'NaN' AND pg_catalog.float8send(sums.decoded[i]) = '\x7ff0000000000002';
        numbers := ARRAY[
            schema, hints.integers[i] + CASE WHEN whole THEN 0 ELSE 4 END, starts.decoded[i], threshold, zeros.decoded[i], 0,
            sums.decoded[i], widths[1]
        ] || bounds;
        total := zeros.decoded[i];
        first := 1;
        -- A query here would be planned each time for its values, with a copy of all cells.
        FOR side IN 2 .. 3 LOOP
            runs := ARRAY[]::double precision[];
            filled := ARRAY[]::double precision[];
            follows := NULL;
            FOR bucket IN first .. first + widths[side] - 1 LOOP
                cell := cells[(bucket - 1) * count + i];
                CONTINUE WHEN cell = 0;
                filled := filled || cell;
                total := total + cell;
                index := indices[bucket];
                IF index = follows THEN
                    runs[last] := runs[last] + 1;
                ELSE
                    runs := runs || index::double precision || 1::double precision;
                    last := pg_catalog.cardinality(runs);
                END IF;
                follows := index + 1;
            END LOOP;
            numbers := numbers || pg_catalog.cardinality(runs) / 2::double precision || runs || filled;
            first := first + widths[side];
        END LOOP;
        IF whole THEN
            total := total + counts.integers[i];
            IF NOT (total >= 0 AND total < 9007199254740992) THEN
                RAISE EXCEPTION 'corrupt chunk: % is no count', total USING ERRCODE = 'data_corrupted';
            END IF;
            numbers[6] := total;
        ELSE
            numbers[6] := counts.decoded[i];
        END IF;
        number := i;
        RETURN NEXT;
    END LOOP;
END
$body$;

-- The histograms of a chunk, each as the list of its numbers; none for a stale marker.
CREATE OR REPLACE FUNCTION {decode_histograms}(
    times bit varying, places integer, data bit varying, floats double precision[]
) RETURNS TABLE ("time" timestamptz, numbers double precision[])
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 200 COST 100000 AS $body$
DECLARE
    -- The place of the only series.
    place constant integer := 32 - pg_catalog."position"(places::bit(32), B'1');
    ends constant integer := pg_catalog.length(data) - 7;
    stream bit varying;
    times_ms bigint[];
    count integer;
    list record;
    at bigint := 1;
    size bigint;
BEGIN
    IF pg_catalog.bit_count(places::bit(32)) <> 1 OR ends < 3 THEN
        RAISE EXCEPTION 'corrupt chunk: histograms at places %, % bits', places, ends + 7
            USING ERRCODE = 'data_corrupted';
    END IF;
    -- A copy is read without unpacking it each time.
    stream := pg_catalog.substring(data, 1, ends + 7);
    IF (pg_catalog.bit_count(pg_catalog.substring(stream, 1, ends - 1)) + place) % 256
        <> pg_catalog.substring(stream, ends, 8)::integer
    THEN
        RAISE EXCEPTION 'corrupt chunk: the check of place % fails', place USING ERRCODE = 'data_corrupted';
    END IF;
    times_ms := {decode_times}(times);
    count := pg_catalog.cardinality(times_ms);
    IF pg_catalog.substring(stream, 1, 1) = B'0' THEN
        RETURN QUERY SELECT {time_of_ms}(times_ms[h.number]), h.numbers
            FROM {decode_columns}(stream, ends, count, floats) AS h;
        RETURN;
    END IF;
    list := {decode_integers}(stream, 3, count);
    FOR i IN 1 .. count LOOP
        size := list.integers[i] - 1;
        CONTINUE WHEN size = -1;
        IF size < 0 OR size > COALESCE(pg_catalog.cardinality(floats), 0) - at + 1 THEN
            RAISE EXCEPTION 'corrupt chunk: a list of % numbers', size USING ERRCODE = 'data_corrupted';
        END IF;
        "time" := {time_of_ms}(times_ms[i]);
        numbers := COALESCE(floats[at : at + size - 1], ARRAY[]::double precision[]);
        at := at + size;
        RETURN NEXT;
    END LOOP;
    IF pg_catalog.substring(stream, 2, 1) = B'1' OR list.next <> ends
        OR at <> COALESCE(pg_catalog.cardinality(floats), 0) + 1
    THEN
        RAISE EXCEPTION 'corrupt chunk: lists of numbers end at bit % and float %', list.next, at - 1
            USING ERRCODE = 'data_corrupted';
    END IF;
END
$body$;

-- A time in ms since 1970. Hours are exact at all times, in two halves, for there are more than an integer has.
CREATE OR REPLACE FUNCTION {time_of_ms}(time_ms bigint) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $body$
    SELECT CASE WHEN time_ms BETWEEN 0 AND 4294967296000
        THEN pg_catalog.to_timestamp(time_ms / 1000::double precision)
        ELSE '1970-01-01 00:00:00+00'::timestamptz
            + pg_catalog.make_interval(hours => (time_ms / 7200000)::integer)
            + pg_catalog.make_interval(
                hours => (time_ms / 3600000 - time_ms / 7200000)::integer,
                secs => time_ms % 3600000 / 1000::double precision
            )
        END
$body$;

-- The upper bound of an exponential bucket, 2^(index * 2^-schema): the greatest float where that is 2^1024, for only
-- infinite observations are in the bucket after it.
CREATE OR REPLACE FUNCTION {bucket_bound}(schema integer, index bigint) RETURNS double precision
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
DECLARE
    exponent constant bigint := CASE WHEN schema > 0 THEN index >> schema ELSE index << -schema END;
    share constant double precision :=
        CASE WHEN schema > 0 THEN (index & ((1 << schema) - 1)) / (1 << schema)::double precision ELSE 0 END;
BEGIN
    IF exponent > 1024 OR exponent = 1024 AND share > 0 THEN
        RETURN 'Infinity';
    ELSIF exponent = 1024 THEN
        RETURN '1.7976931348623157e308';
    ELSIF exponent < -1074 THEN
        RETURN 0;
    END IF;
    -- In two powers: the server refuses one below the normal floats on some platforms.
    RETURN pg_catalog.power(2::double precision, share) * pg_catalog.power(2::double precision, GREATEST(exponent, -1022))
        * pg_catalog.power(2::double precision, LEAST(exponent + 1022, 0));
END
$body$;

-- The buckets of a histogram that have observations, in the order of their bounds. It is given by the list of its numbers.
CREATE OR REPLACE FUNCTION {histogram_buckets}(numbers double precision[])
RETURNS TABLE (lower double precision, upper double precision, count double precision)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT ROWS 20 COST 1000 AS $body$
DECLARE
    schema constant integer := numbers[1];
    custom constant integer := numbers[8];
    -- Of the positive and the negative buckets: where the number of their runs is, that number, and where their counts end.
    heads integer[] := ARRAY[9 + custom];
    runs integer[];
    ends integer[];
    at integer;
    index bigint;
BEGIN
    FOR side IN 1 .. 2 LOOP
        runs[side] := numbers[heads[side]];
        ends[side] := heads[side] + 2 * runs[side];
        FOR run IN 1 .. runs[side] LOOP
            ends[side] := ends[side] + GREATEST(numbers[heads[side] + 2 * run]::integer, 0);
        END LOOP;
        heads[side + 1] := ends[side] + 1;
    END LOOP;
    IF ends[2] IS DISTINCT FROM pg_catalog.cardinality(numbers) THEN
        RAISE EXCEPTION 'corrupt histogram: % numbers, and not %', pg_catalog.cardinality(numbers), ends[2]
            USING ERRCODE = 'data_corrupted';
    END IF;
    at := ends[2];
    FOR run IN REVERSE runs[2] .. 1 LOOP
        index := numbers[heads[2] + 2 * run - 1]::bigint + numbers[heads[2] + 2 * run]::bigint;
        FOR i IN 1 .. numbers[heads[2] + 2 * run]::integer LOOP
            index := index - 1;
            lower := -{bucket_bound}(schema, index);
            upper := -{bucket_bound}(schema, index - 1);
            count := numbers[at];
            at := at - 1;
            RETURN NEXT;
        END LOOP;
    END LOOP;
    IF numbers[5] <> 0 THEN
        lower := -numbers[4];
        upper := numbers[4];
        count := numbers[5];
        RETURN NEXT;
    END IF;
    at := heads[1] + 2 * runs[1];
    FOR run IN 1 .. runs[1] LOOP
        index := numbers[heads[1] + 2 * run - 1];
        FOR i IN 1 .. numbers[heads[1] + 2 * run]::integer LOOP
            at := at + 1;
            IF schema = -53 THEN
                lower := CASE WHEN index < 1 THEN '-Infinity' WHEN index > custom THEN 'Infinity' ELSE numbers[8 + index] END;
                upper := CASE WHEN index < 0 THEN '-Infinity' WHEN index >= custom THEN 'Infinity' ELSE numbers[9 + index] END;
            ELSE
                lower := {bucket_bound}(schema, index - 1);
                upper := {bucket_bound}(schema, index);
            END IF;
            count := numbers[at];
            index := index + 1;
            RETURN NEXT;
        END LOOP;
    END LOOP;
END
$body$;

COMMENT ON FUNCTION {decode_histograms}(bit varying, integer, bit varying, double precision[]) IS
    'Native histograms of a chunk, as lists of numbers (prometheus-postgresql-adapter)';
COMMENT ON FUNCTION {histogram_buckets}(double precision[]) IS
    'Buckets of a native histogram that have observations (prometheus-postgresql-adapter)';
