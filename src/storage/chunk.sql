CREATE FUNCTION {decode}(times bit varying, places smallint[], starts integer[], data bit varying, floats double precision[], place smallint)
RETURNS TABLE ("time" timestamptz, value double precision) LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $body$ SELECT NULL::timestamptz, NULL::float8 WHERE false $body$;
