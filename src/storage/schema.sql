-- What version 1 of the store consists of. {x} is filled in with the qualified name of the store's x.

CREATE TABLE {series} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The first half of the SHA-256 of the label set: a label set of any size has a small unique key.
    key uuid NOT NULL UNIQUE,
    name text NOT NULL,
    labels jsonb NOT NULL
);
-- Hash and jsonb_path_ops indexes take values of any length.
CREATE INDEX ON {series} USING hash (name);
CREATE INDEX ON {series} USING gin (labels jsonb_path_ops);

-- Bare on purpose: a unique index on every sample makes writing four to five times as dear.
CREATE TABLE {samples} (
    "time" timestamptz NOT NULL,
    series_id bigint NOT NULL,
    value double precision NOT NULL
) PARTITION BY RANGE ("time");
CREATE INDEX ON {samples} USING brin ("time") WITH (pages_per_range = 64, autosummarize = on);

-- The partitions of {samples}. NULL bounds: everything before upper.
CREATE TABLE {segments} (
    relation text PRIMARY KEY,
    lower timestamptz,
    upper timestamptz NOT NULL,
    indexed boolean NOT NULL DEFAULT false
);

-- Requests that are stored: a retry finds itself here.
CREATE TABLE {requests} (
    key uuid PRIMARY KEY,
    stored_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON {requests} USING brin (stored_at);

-- One row a group: who leads, and the token that its writes must show.
CREATE TABLE {leader} (
    group_no integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_name text NOT NULL UNIQUE,
    term bigint NOT NULL DEFAULT 0,
    token uuid,
    holder text,
    heartbeat timestamptz,
    -- Every sample up to here is committed; a standby may forget it.
    watermark timestamptz,
    -- How far the clocks of those are ahead of the server's by which what is stored last may have been stored: of the
    -- leader alone once every series goes on under it, until then of those before it too.
    clock_offsets_ms bigint[]
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

-- What SQL users see.
CREATE VIEW {view} AS
    SELECT s."time", l.name, s.value, l.labels FROM {samples} s JOIN {series} l ON l.id = s.series_id;
CREATE VIEW {labels} AS SELECT id, name AS metric_name, labels FROM {series};
CREATE VIEW {values} AS SELECT "time", value, series_id AS labels_id FROM {samples};
CREATE FUNCTION {range}(metric text, matchers jsonb, start_time timestamptz, end_time timestamptz)
RETURNS TABLE ("time" timestamptz, value double precision, labels jsonb) LANGUAGE sql STABLE AS $body$
    SELECT s."time", s.value, l.labels
    FROM {labels} l JOIN {values} s ON s.labels_id = l.id
    WHERE l.metric_name = metric AND l.labels @> matchers AND s."time" >= start_time AND s."time" <= end_time
    ORDER BY l.id, s."time"
$body$;

COMMENT ON VIEW {view} IS 'Every sample with its labels (prometheus-postgresql-adapter)';
COMMENT ON VIEW {labels} IS 'Every series: id, metric name, labels (prometheus-postgresql-adapter)';
COMMENT ON VIEW {values} IS 'Every sample with the id of its series (prometheus-postgresql-adapter)';
COMMENT ON FUNCTION {range}(text, jsonb, timestamptz, timestamptz) IS
    'Samples of one metric between two times, both included, whose labels contain matchers (prometheus-postgresql-adapter)';
