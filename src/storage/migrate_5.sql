-- Version 5 of the store, in both layouts: what senders say of their metrics.

-- A row for each thing that was ever said of a metric.
CREATE TABLE {metadata_history} (
    -- The first half of the SHA-256 of what is said: a text of any length has a small unique key.
    key uuid PRIMARY KEY,
    -- Of the metric family, by remote write 1.0; by 2.0, of the metric.
    name text NOT NULL,
    type text NOT NULL,
    help text NOT NULL,
    unit text NOT NULL,
    first_seen timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Within ten minutes.
    last_seen timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE {metadata_history} IS 'What was ever said of each metric (prometheus-postgresql-adapter)';

CREATE VIEW {metadata} AS
    SELECT DISTINCT ON (name) name, type, help, unit, first_seen, last_seen FROM {metadata_history}
    ORDER BY name, last_seen DESC, first_seen DESC;
COMMENT ON VIEW {metadata} IS 'Type, help and unit of each metric, as last said (prometheus-postgresql-adapter)';
