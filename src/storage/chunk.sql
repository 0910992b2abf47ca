-- Decodes chunks; src/storage/chunk.rs has their format and the other decoder. Positions of bits count from 1 here.
--
-- A read beyond the end of a stream gives fewer bits and no error, so whoever reads a stream compares at last where it
-- came to with where the stream ends. A statement of PL/pgSQL takes some 80 ns: few of them are spent on each sample.

-- count integers in blocks: as they are (sums = 0); or the first and the steps from there (1); or the first, the second,
-- and the changes of such steps (2). They begin at "at" and end before "next".
CREATE OR REPLACE FUNCTION {decode_blocks}(
    stream bit varying, at integer, count integer, sums integer, first bigint, step bigint,
    OUT integers bigint[], OUT next integer
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
DECLARE
    given constant integer := sums;
    number integer := given + 1;
    until integer;
    width integer;
    extra integer;
    patches integer;
    place integer;
    base bigint;
BEGIN
    integers := pg_catalog.array_fill(first, ARRAY[count]);
    IF given = 2 THEN
        integers[2] := first + step;
    END IF;
    next := at;
    WHILE number <= count LOOP
        until := LEAST(count, number + 127);
        width := pg_catalog.substring(stream, next + 6, 6)::integer;
        base := pg_catalog.substring(stream, next + 12, width)::bit(64)::bigint >> 1 >> (63 - width);
        at := next + 12 + width;
        patches := 0;
        IF until - number >= 7 THEN
            IF pg_catalog.substring(stream, at, 1) = B'1' THEN
                extra := pg_catalog.substring(stream, at + 1, 6)::integer;
                patches := pg_catalog.substring(stream, at + 7, 7)::integer + 1;
                at := at + 13;
            END IF;
            at := at + 1;
        END IF;
        width := pg_catalog.substring(stream, next, 6)::integer;
        next := at + (until - number + 1) * width;
        at := at - number * width;
        IF sums = 0 OR patches > 0 THEN
            FOR i IN number .. until LOOP
                integers[i] := base + pg_catalog.substring(stream, at + i * width, width)::bigint;
            END LOOP;
            FOR i IN 1 .. patches LOOP
                place := number + pg_catalog.substring(stream, next, 7)::integer;
                IF place > until OR width + extra > 63 THEN
                    RAISE EXCEPTION 'corrupt chunk: a patch of % bits at % of %', width + extra, place, until
                        USING ERRCODE = 'data_corrupted';
                END IF;
                integers[place] :=
                    integers[place] + (pg_catalog.substring(stream, next + 7, extra)::bigint << width);
                next := next + 7 + extra;
            END LOOP;
            IF sums = 1 THEN
                FOR i IN number .. until LOOP
                    integers[i] := integers[i - 1] + integers[i];
                END LOOP;
            ELSIF sums = 2 THEN
                FOR i IN number .. until LOOP
                    step := step + integers[i];
                    integers[i] := integers[i - 1] + step;
                END LOOP;
            END IF;
        ELSIF sums = 1 THEN
            FOR i IN number .. until LOOP
                integers[i] := integers[i - 1] + base + pg_catalog.substring(stream, at + i * width, width)::bigint;
            END LOOP;
        ELSE
            FOR i IN number .. until LOOP
                step := step + base + pg_catalog.substring(stream, at + i * width, width)::bigint;
                integers[i] := integers[i - 1] + step;
            END LOOP;
        END IF;
        number := until + 1;
    END LOOP;
END
$body$;

-- A count and so many positions from 1 to last.
CREATE OR REPLACE FUNCTION {decode_positions}(
    stream bit varying, at integer, last integer, OUT positions bigint[], OUT next integer
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
DECLARE
    width constant integer := pg_catalog.substring(stream, at, 5)::integer;
    count constant integer := pg_catalog.substring(stream, at + 5, width)::integer;
    blocks record;
BEGIN
    IF count > last THEN
        RAISE EXCEPTION 'corrupt chunk: % positions in %', count, last USING ERRCODE = 'data_corrupted';
    END IF;
    blocks := {decode_blocks}(stream, at + 5 + width, count, 0, 0, 0);
    next := blocks.next;
    positions := blocks.integers;
    FOR i IN 2 .. count LOOP
        positions[i] := positions[i - 1] + positions[i];
    END LOOP;
    IF 1 > ANY (blocks.integers) OR positions[count] > last THEN
        RAISE EXCEPTION 'corrupt chunk: positions to % of %', positions[count], last USING ERRCODE = 'data_corrupted';
    END IF;
END
$body$;

-- A list of count integers.
CREATE OR REPLACE FUNCTION {decode_integers}(
    stream bit varying, at integer, count integer, OUT integers bigint[], OUT next integer
) LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $body$
DECLARE
    shape integer := pg_catalog.substring(stream, at, 3)::integer;
    "offset" bigint;
    factor bigint;
    width integer;
    first bigint := 0;
    step bigint := 0;
    blocks record;
    steps record;
    number integer := 2;
    until integer;
BEGIN
    next := at + 3;
    IF shape = 6 THEN
        width := pg_catalog.substring(stream, next, 6)::integer;
        "offset" := pg_catalog.substring(stream, next + 6, width)::bit(64)::bigint >> 1 >> (63 - width);
        next := next + 6 + width;
        width := pg_catalog.substring(stream, next, 6)::integer;
        factor := pg_catalog.substring(stream, next + 6, width)::bit(64)::bigint >> 1 >> (63 - width);
        shape := pg_catalog.substring(stream, next + 6 + width, 3)::integer;
        next := next + 9 + width;
    END IF;
    IF shape <> 2 THEN
        width := pg_catalog.substring(stream, next, 6)::integer;
        first := pg_catalog.substring(stream, next + 6, width)::bit(64)::bigint >> 1 >> (63 - width);
        next := next + 6 + width;
    END IF;
    IF shape IN (1, 4, 5) THEN
        width := pg_catalog.substring(stream, next, 6)::integer;
        step := pg_catalog.substring(stream, next + 6, width)::bit(64)::bigint >> 1 >> (63 - width);
        next := next + 6 + width;
    END IF;
    IF shape = 0 THEN
        integers := pg_catalog.array_fill(first, ARRAY[count]);
    ELSIF shape = 1 THEN
        integers := ARRAY(SELECT first + step * pg_catalog.generate_series(0, count - 1));
    ELSIF shape IN (2, 3, 4) THEN
        blocks := {decode_blocks}(stream, next, count, shape - 2, first, step);
        integers := blocks.integers;
        next := blocks.next;
    ELSIF shape = 5 THEN
        steps := {decode_positions}(stream, next, count - 1);
        blocks := {decode_blocks}(stream, steps.next, pg_catalog.cardinality(steps.positions), 0, 0, 0);
        next := blocks.next;
        integers := pg_catalog.array_fill(first, ARRAY[count]);
        FOR change IN 1 .. pg_catalog.cardinality(blocks.integers) LOOP
            until := steps.positions[change];
            FOR i IN number .. until LOOP
                integers[i] := integers[i - 1] + step;
            END LOOP;
            integers[until + 1] := integers[until] + step + blocks.integers[change];
            number := until + 2;
        END LOOP;
        FOR i IN number .. count LOOP
            integers[i] := integers[i - 1] + step;
        END LOOP;
    ELSE
        RAISE EXCEPTION 'corrupt chunk: there is no shape %', shape USING ERRCODE = 'data_corrupted';
    END IF;
    IF pg_catalog.cardinality(integers) <> count THEN
        RAISE EXCEPTION 'corrupt chunk: % integers for %', pg_catalog.cardinality(integers), count
            USING ERRCODE = 'data_corrupted';
    END IF;
    IF factor IS NOT NULL THEN
        integers := ARRAY(SELECT "offset" + factor * pg_catalog.unnest(integers));
    END IF;
END
$body$;

-- The times of a chunk, in ms since 1970.
CREATE OR REPLACE FUNCTION {decode_times}(times bit varying) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT AS $body$
DECLARE
    ends constant integer := pg_catalog.length(times) - 7;
    list record;
BEGIN
    IF ends < 17 OR pg_catalog.bit_count(pg_catalog.substring(times, 1, ends - 1)) % 256
        <> pg_catalog.substring(times, ends, 8)::integer
    THEN
        RAISE EXCEPTION 'corrupt chunk: the check of its times fails' USING ERRCODE = 'data_corrupted';
    END IF;
    list := {decode_integers}(times, 17, pg_catalog.substring(times, 1, 16)::integer + 1);
    IF list.next <> ends THEN
        RAISE EXCEPTION 'corrupt chunk: its times end at bit % and not at %', list.next, ends
            USING ERRCODE = 'data_corrupted';
    END IF;
    RETURN list.integers;
END
$body$;

-- The samples of the series at a place of the bucket; none where the row has no such series.
CREATE OR REPLACE FUNCTION {decode}(
    times bit varying, places integer, data bit varying, floats double precision[], place integer
) RETURNS TABLE ("time" timestamptz, value double precision)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 200 COST 10000 AS $body$
DECLARE
    -- How many series come before, and how many there are.
    number constant integer := pg_catalog.bit_count(pg_catalog.substring(places::bit(32), 33 - place, place));
    series constant integer := pg_catalog.bit_count(places::bit(32));
    begins integer := 16 * (series - 1);
    ends integer := pg_catalog.length(data);
    stream bit varying;
    times_ms bigint[];
    count integer;
    near boolean;
    at integer;
    scale integer;
    power integer;
    decimals double precision;
    divisor double precision := 1;
    factor double precision := 1;
    odd record;
    kept record;
    list record;
    rests record;
    decoded double precision[];
BEGIN
    IF places >> place & 1 = 0 THEN
        RETURN;
    END IF;
    IF number > 0 THEN
        begins := pg_catalog.substring(data, 16 * number - 15, 16)::integer;
    END IF;
    IF number < series - 1 THEN
        ends := pg_catalog.substring(data, 16 * number + 1, 16)::integer;
    END IF;
    IF ends < begins + 8 OR ends > pg_catalog.length(data) THEN
        RAISE EXCEPTION 'corrupt chunk: place % from bit % to % of %', place, begins, ends, pg_catalog.length(data)
            USING ERRCODE = 'data_corrupted';
    END IF;
    stream := pg_catalog.substring(data, begins + 1, ends - begins);
    ends := ends - begins - 7;
    IF (pg_catalog.bit_count(pg_catalog.substring(stream, 1, ends - 1)) + place) % 256
        <> pg_catalog.substring(stream, ends, 8)::integer
    THEN
        RAISE EXCEPTION 'corrupt chunk: the check of place % fails', place USING ERRCODE = 'data_corrupted';
    END IF;
    times_ms := {decode_times}(times);
    count := pg_catalog.cardinality(times_ms);
    -- Seconds as a float are exact to the millisecond until 2106.
    near := times_ms[1] >= 0 AND times_ms[count] < 4294967296000;
    scale := pg_catalog.substring(stream, 1, 2)::integer;
    at := 3;
    IF scale = 0 THEN
        divisor := ('1e' || pg_catalog.substring(stream, 3, 4)::integer)::double precision;
        at := 7;
    ELSIF scale = 1 THEN
        factor := ('1e-' || pg_catalog.substring(stream, 3, 4)::integer)::double precision;
        at := 7;
    ELSIF scale = 2 THEN
        power := pg_catalog.substring(stream, 3, 8)::integer - 62;
        at := 11;
        IF power >= 178 THEN
            decimals := ('1e' || power - 178)::double precision;
            power := pg_catalog.substring(stream, 11, 8)::integer - 62;
            at := 19;
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
    IF pg_catalog.substring(stream, at, 1) = B'1' THEN
        odd := {decode_positions}(stream, at + 1, count);
        kept := {decode_blocks}(stream, odd.next, pg_catalog.cardinality(odd.positions), 0, 0, 0);
        list := {decode_integers}(stream, kept.next, count);
    ELSE
        list := {decode_integers}(stream, at + 1, count);
    END IF;
    IF decimals IS NOT NULL THEN
        rests := {decode_integers}(stream, list.next, count);
        list.next := rests.next;
    END IF;
    IF list.next <> ends THEN
        RAISE EXCEPTION 'corrupt chunk: place % ends at bit % and not at %', place, list.next, ends
            USING ERRCODE = 'data_corrupted';
    END IF;
    IF scale <> 3 AND decimals IS NULL AND odd IS NULL AND near THEN
        RETURN QUERY SELECT pg_catalog.to_timestamp(pg_catalog.unnest(times_ms) / 1000::double precision),
            pg_catalog.unnest(list.integers) / divisor * factor;
        RETURN;
    END IF;
    IF scale = 3 THEN
        decoded := ARRAY(SELECT floats[index + 1] FROM pg_catalog.unnest(list.integers::integer[]) AS numbers(index));
    ELSIF decimals IS NOT NULL THEN
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
        RAISE EXCEPTION 'corrupt chunk: place % wants more than % floats', place, pg_catalog.cardinality(floats)
            USING ERRCODE = 'data_corrupted';
    END IF;
    IF near THEN
        RETURN QUERY SELECT pg_catalog.to_timestamp(pg_catalog.unnest(times_ms) / 1000::double precision),
            pg_catalog.unnest(decoded);
        RETURN;
    END IF;
    -- Hours are exact at all times, in two halves, for there are more than an integer has.
    RETURN QUERY SELECT '1970-01-01 00:00:00+00'::timestamptz
            + pg_catalog.make_interval(hours => (time_ms / 7200000)::integer)
            + pg_catalog.make_interval(
                hours => (time_ms / 3600000 - time_ms / 7200000)::integer,
                secs => time_ms % 3600000 / 1000::double precision
            ),
            decoded_value
        FROM ROWS FROM (pg_catalog.unnest(times_ms), pg_catalog.unnest(decoded)) AS samples(time_ms, decoded_value);
END
$body$;

COMMENT ON FUNCTION {decode}(bit varying, integer, bit varying, double precision[], integer) IS
    'Samples of one series of a chunk (prometheus-postgresql-adapter)';
