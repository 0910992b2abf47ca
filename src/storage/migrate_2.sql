-- Version 2 of the store, in both layouts: who stored a hot row and by which transaction, so that others can observe what was
-- committed; who led when; and a counter by which a group's leader learns that others have stored samples in its place.

-- Those who send, each a Prometheus replica of a group. Rows stay: hot rows have the numbers.
CREATE TABLE {senders} (
    sender_no integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    group_name text NOT NULL,
    -- Of the replica in its group.
    name text NOT NULL,
    -- How far the clock of the adapter it sends to is ahead of the server's.
    clock_offset_ms bigint NOT NULL DEFAULT 0,
    UNIQUE (group_name, name)
);

-- Constants first, so that the rows there are stay as they are: of an unknown sender, and stored long ago.
ALTER TABLE {hot} ADD sender integer NOT NULL DEFAULT 0, ADD xid xid8 NOT NULL DEFAULT '0';
ALTER TABLE {hot} ALTER xid SET DEFAULT pg_catalog.pg_current_xact_id();
CREATE INDEX ON {hot} (sender, xid);

-- What sealing has taken away of the hot rows: none that was stored by a transaction which this snapshot does not see.
-- And none that is later than the newest.
CREATE TABLE {sealed_to} (snapshot pg_snapshot NOT NULL, newest timestamptz NOT NULL);
INSERT INTO {sealed_to} VALUES ('1:1:', '-infinity');

ALTER TABLE {leader}
    -- How often others than the leader have stored samples of the group that they had compared with what was there.
    ADD reconciled bigint NOT NULL DEFAULT 0,
    -- The sender that leads.
    ADD sender_no integer;

-- What tells a server from another one with less, or other things, in it: an asynchronous replica that was promoted, an older copy, a
-- store made anew. A server that was started again may have been set back; what it does not tell is left out.
CREATE FUNCTION {server_state}() RETURNS text
LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
    state text := concat_ws(' ', {series:literal}::regclass::oid, extract(epoch FROM pg_catalog.pg_postmaster_start_time()));
BEGIN
    BEGIN
        state := concat_ws(' ', state, (pg_catalog.pg_control_system()).system_identifier);
        state := concat_ws(' ', state, pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8));
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RETURN state;
END
$body$;

-- Fails on a server that is not the one which said so of itself: ids of series and numbers of senders that were found on one are not
-- to be used on another.
CREATE FUNCTION {same_server}(known text) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $body$
BEGIN
    IF {server_state}() <> known THEN
        RAISE EXCEPTION 'the server was replaced or restarted since ids of series were looked up' USING ERRCODE = 'PF003';
    END IF;
    RETURN true;
END
$body$;

-- The number of a sender; a new one if need be. It is looked for first, so that no number is taken for nothing.
CREATE FUNCTION {sender}(of_group text, called text) RETURNS integer
LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
    number integer;
BEGIN
    LOOP
        SELECT sender_no INTO number FROM {senders} WHERE group_name = of_group AND name = called;
        IF number IS NULL THEN
            -- Another session may just have added it.
            INSERT INTO {senders} (group_name, name) VALUES (of_group, called) ON CONFLICT DO NOTHING
                RETURNING sender_no INTO number;
        END IF;
        EXIT WHEN number IS NOT NULL;
    END LOOP;
    RETURN number;
END
$body$;

-- The fence. The lock waits for a new leader that is raising the term, and for whoever reconciles; the comparisons are a
-- statement of their own, so they see what is committed once the lock is granted. Needs READ COMMITTED. Group 0 has no leader:
-- writers without an election only keep those that reconcile out. reconciled_known may be NULL: whoever does not store samples
-- need not know.
DROP FUNCTION {fence}(integer, uuid);
CREATE FUNCTION {fence}(of_group integer, with_token uuid, reconciled_known bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $body$
DECLARE
    reconciled_now bigint;
BEGIN
    PERFORM pg_catalog.pg_advisory_xact_lock_shared({leader:literal}::regclass::oid::integer, of_group);
    IF of_group = 0 THEN
        RETURN;
    END IF;
    SELECT reconciled INTO reconciled_now FROM {leader} WHERE group_no = of_group AND token = with_token;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another adapter has begun a newer term' USING ERRCODE = 'PF001';
    END IF;
    IF reconciled_now <> reconciled_known THEN
        RAISE EXCEPTION 'others have stored samples of the group since it was last observed' USING ERRCODE = 'PF002';
    END IF;
END
$body$;

-- The same for the writes of several groups in one transaction: for each the state that {fence} would raise, NULL where it would
-- not. Whoever reconciles is waited for, but for a second at most in all: a group whose lock is not granted then counts as
-- fenced, lest it hold the others up. Groups ascend, so that two transactions never wait for each other.
DROP FUNCTION {fences}(integer[], uuid[]);
CREATE FUNCTION {fences}(of_groups integer[], with_tokens uuid[], reconciled_known bigint[]) RETURNS text[]
LANGUAGE plpgsql VOLATILE SET lock_timeout = '1s' AS $body$
DECLARE
    class constant integer := {leader:literal}::regclass::oid::integer;
    waits_until constant timestamptz := clock_timestamp() + interval '1 second';
    left_ms integer;
    shared integer[];
    this_group integer;
BEGIN
    FOR this_group IN SELECT DISTINCT g FROM unnest(of_groups) AS g ORDER BY g LOOP
        left_ms := extract(epoch FROM waits_until - clock_timestamp()) * 1000;
        IF pg_catalog.pg_try_advisory_xact_lock_shared(class, this_group) THEN
            shared := shared || this_group;
        ELSIF left_ms > 0 THEN
            BEGIN
                PERFORM pg_catalog.set_config('lock_timeout', left_ms::text, true);
                PERFORM pg_catalog.pg_advisory_xact_lock_shared(class, this_group);
                shared := shared || this_group;
            EXCEPTION WHEN lock_not_available THEN
                NULL;
            END;
        END IF;
    END LOOP;
    RETURN ARRAY(
        SELECT CASE
            WHEN this.of_group = 0 AND this.of_group = ANY (shared) THEN NULL
            WHEN l.group_no IS NULL THEN 'PF001'
            WHEN l.reconciled <> this.known THEN 'PF002'
        END
        FROM unnest(of_groups, with_tokens, reconciled_known) WITH ORDINALITY AS this (of_group, with_token, known, place)
        LEFT JOIN {leader} l ON l.group_no = this.of_group AND l.token = this.with_token AND l.group_no = ANY (shared)
        ORDER BY this.place
    );
END
$body$;

-- What version 2 of the store has beside version 1, in either layout.

-- The views are for reading. Without this PostgreSQL carries changes of {labels} out on {series}: a series deleted there an
-- adapter goes on storing by the id that it knows, and no reader finds it.
CREATE FUNCTION {refuse_changes}() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    RAISE EXCEPTION 'the view % is for reading: % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'object_not_in_prerequisite_state',
        HINT = 'The adapter drops samples by their age (-pg-retention), and a series once its last sample is dropped. '
            'What is not to be stored, let Prometheus drop by write_relabel_configs.';
END
$body$;
CREATE TRIGGER refuse_changes INSTEAD OF INSERT OR UPDATE OR DELETE ON {view}
    FOR EACH ROW EXECUTE FUNCTION {refuse_changes}();
CREATE TRIGGER refuse_changes INSTEAD OF INSERT OR UPDATE OR DELETE ON {labels}
    FOR EACH ROW EXECUTE FUNCTION {refuse_changes}();
CREATE TRIGGER refuse_changes INSTEAD OF INSERT OR UPDATE OR DELETE ON {values}
    FOR EACH ROW EXECUTE FUNCTION {refuse_changes}();
