//! Request keys, by which a retry is recognized. [`ingest`](crate::storage::ingest) claims them in the transaction that stores a
//! request, and [`upkeep`](crate::storage::upkeep) deletes old ones.

use uuid::Uuid;

use crate::model::source::Source;

/// Returns the key of a request: the same for the same bytes. The hash is cryptographic, so that nobody can make a
/// second body that counts as stored. BLAKE3 is also fast on processors without instructions for SHA-256.
#[must_use]
pub fn request_key(body: &[u8]) -> Uuid {
    let mut key = [0; 16];
    key.copy_from_slice(&blake3::hash(body).as_bytes()[..16]);
    Uuid::from_bytes(key)
}

/// Returns the key of the part that one of several senders has in the request `key`.
#[must_use]
pub fn part_key(key: Uuid, Source { cluster, replica }: &Source) -> Uuid {
    let mut part = key.as_bytes().to_vec();
    for label in [cluster, replica] {
        part.extend_from_slice(&label.len().to_be_bytes());
        part.extend_from_slice(label.as_bytes());
    }
    request_key(&part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_request_is_the_same_in_every_adapter() {
        assert_eq!(request_key(b"").to_string(), "af1349b9-f5f9-a1a6-a040-4dea36dcc949");
        let part = part_key(request_key(b""), &Source { cluster: "c".into(), replica: "r".into() });
        assert_ne!(part, part_key(request_key(b""), &Source { cluster: "cr".into(), replica: String::new() }));
    }
}
