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
