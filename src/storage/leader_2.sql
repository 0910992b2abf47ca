-- Who leads: what version 2 changes of the groups' rows.

-- The sender that leads.
ALTER TABLE {leader} ADD COLUMN IF NOT EXISTS sender_no integer;
ALTER TABLE {leader} DROP COLUMN IF EXISTS watermark, DROP COLUMN IF EXISTS clock_offsets_ms, DROP COLUMN IF EXISTS holes,
    DROP COLUMN IF EXISTS hole_clock_least_ms, DROP COLUMN IF EXISTS hole_clock_most_ms;

-- Begins a term of a group. Whatever allows it is for the caller to know, which holds the group's lock exclusively, so that no
-- write of an older term is under way. A sender is called like the holder that leads by it.
CREATE OR REPLACE FUNCTION {raise}(of_group integer, new_holder text, OUT new_term bigint, OUT new_token uuid)
LANGUAGE sql VOLATILE AS $body$
    UPDATE {leader} SET term = term + 1, token = pg_catalog.gen_random_uuid(), holder = new_holder,
        sender_no = {sender}(group_name, new_holder), heartbeat = pg_catalog.clock_timestamp(), successor = NULL, successor_until = NULL
    WHERE group_no = of_group RETURNING term, token
$body$;

-- What the election by labels needs is made anew, as clusters.sql has it now.
DROP FUNCTION IF EXISTS {take_over};
DROP TABLE IF EXISTS {reports}, {cuts};
