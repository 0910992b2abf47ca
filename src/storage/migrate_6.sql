-- Version 6 of the store, in both layouts: exemplars.

CREATE TABLE {exemplar_rows} (
    series bigint NOT NULL,
    -- The first half of the SHA-256 of labels and value.
    key uuid NOT NULL,
    "time" timestamptz NOT NULL,
    value double precision NOT NULL,
    labels jsonb NOT NULL,
    PRIMARY KEY (series, key, "time")
);

CREATE VIEW {exemplars} AS
    SELECT e."time", s.name, s.labels, e.value, e.labels AS exemplar_labels
    FROM {exemplar_rows} e JOIN {series} s ON s.id = e.series;
COMMENT ON VIEW {exemplars} IS 'Exemplars with their series: a value that was observed, and the labels of its trace (prometheus-postgresql-adapter)';
