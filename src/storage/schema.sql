-- What version 1 of the store consists of, but for sealed samples: segments.sql and hypertable.sql have those, and what
-- SQL users see. {x} is filled in with the qualified name of the store's x.

CREATE TABLE {series} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The first half of the SHA-256 of the label set: a label set of any size has a small unique key.
    key uuid NOT NULL UNIQUE,
    name text NOT NULL,
    labels jsonb NOT NULL,
    -- When nothing stored referred to it any more; NULL again once somebody asks for it.
    ended_at timestamptz
);
-- Hash and jsonb_path_ops indexes take values of any length.
CREATE INDEX ON {series} USING hash (name) WITH (fillfactor = 100);
-- A list of entries to be sorted in would stay as large as it ever was.
CREATE INDEX ON {series} USING gin (labels jsonb_path_ops) WITH (fastupdate = off);
CREATE INDEX ON {series} (ended_at) WHERE ended_at IS NOT NULL;

-- Samples as they came: one row for all series scraped at one time, so that a sample costs 16 bytes and no index.
-- A reader reads all of it, which sealing keeps small. Two full rows fill a page; nothing is compressed or moved out.
CREATE TABLE {hot} (
    "time" timestamptz NOT NULL,
    -- Ascending.
    series bigint[] NOT NULL,
    value double precision[] NOT NULL,
    -- In the order of storing: of two samples of one series and time the first counts.
    no bigint GENERATED ALWAYS AS IDENTITY
) WITH (autovacuum_enabled = off); -- the sealing job does it, whenever it has emptied it
ALTER TABLE {hot} ALTER series SET STORAGE PLAIN, ALTER value SET STORAGE PLAIN;

-- Requests that are stored: a retry finds itself here.
CREATE TABLE {requests} (
    key uuid PRIMARY KEY,
    stored_at timestamptz NOT NULL DEFAULT now()
);

-- One row a group: who leads, and the token that its writes must show.
CREATE TABLE {leader} (
    group_no integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_name text NOT NULL UNIQUE,
    term bigint NOT NULL DEFAULT 0,
    token uuid,
    holder text,
    heartbeat timestamptz,
    -- Until then nobody but this one takes the lead; a new term clears both. By labels: any other replica, where it is NULL.
    successor text,
    successor_until timestamptz,
    -- By labels: replicas that are held out of elections.
    held_out text[] NOT NULL DEFAULT ARRAY[]::text[],
    -- Every sample up to here is committed; a standby may forget it.
    watermark timestamptz,
    -- How far the clocks of those are ahead of the server's by which what is stored last may have been stored: of the
    -- leader alone once every series goes on under it, until then of those before it too.
    clock_offsets_ms bigint[],
    -- Times that each change of leader leaves in doubt, from the last watermark to when the next leader is sent everything:
    -- what it had not been sent before, nobody may have stored. Whoever has been sent samples of a hole compares them with
    -- what is stored before it forgets them.
    holes tstzmultirange NOT NULL DEFAULT tstzmultirange(),
    -- Of those who stored around the holes, how far the clocks are ahead of the server's.
    hole_clock_least_ms bigint,
    hole_clock_most_ms bigint
) WITH (fillfactor = 50);

-- The fence. The lock waits for a new leader that is raising the term; the comparison is a statement of its own, so
-- it sees the term as it is once the lock is granted. Needs READ COMMITTED.
CREATE FUNCTION {fence}(of_group integer, with_token uuid) RETURNS void LANGUAGE plpgsql VOLATILE AS $body$
BEGIN
    PERFORM pg_catalog.pg_advisory_xact_lock_shared({leader:literal}::regclass::oid::integer, of_group);
    PERFORM 1 FROM {leader} WHERE group_no = of_group AND token = with_token;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another adapter has begun a newer term' USING ERRCODE = 'PF001';
    END IF;
END
$body$;

-- The same for the writes of several groups in one transaction: of these tokens, those that are in force. A group whose
-- term is being raised is not waited for, lest it hold the others up.
CREATE FUNCTION {fences}(of_groups integer[], with_tokens uuid[]) RETURNS uuid[] LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
    of_group integer;
    shared integer[];
BEGIN
    FOREACH of_group IN ARRAY of_groups LOOP
        IF pg_catalog.pg_try_advisory_xact_lock_shared({leader:literal}::regclass::oid::integer, of_group) THEN
            shared := shared || of_group;
        END IF;
    END LOOP;
    RETURN ARRAY(SELECT token FROM {leader} WHERE group_no = ANY (shared) AND token = ANY (with_tokens));
END
$body$;

CREATE VIEW {labels} AS SELECT id, name AS metric_name, labels FROM {series};
COMMENT ON VIEW {labels} IS 'Every series: id, metric name, labels (prometheus-postgresql-adapter)';
